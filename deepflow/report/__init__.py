"""One page about a sweep or a search: everything in one HTML file that works without a network.

- ``content.py`` gathers what the page says, from the table of results and the file that asked.
- ``selection.py`` picks rows: best points, Pareto fronts, what a figure draws, a sample.
- ``page.py`` puts template, style, script, plotting library and content into one file.
- ``page.html``, ``page.css``, ``page.js``, ``figures.js``, ``values.js``: what a browser gets.
"""
