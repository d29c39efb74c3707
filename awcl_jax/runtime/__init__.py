"""The ground: errors and messages, processes and signals, devices, memory, files and buckets."""
