"""What all other rooms use: errors and messages, processes and signals, devices, memory, files and buckets."""
