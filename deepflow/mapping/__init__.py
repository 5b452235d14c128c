"""Who computes what: degrees, placement on the machine, sharded blocks."""
