"""When each task runs: execution of task graphs on devices and links."""
