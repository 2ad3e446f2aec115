"""What data preparation costs: `corpus` (real code), `ways` (ours, others', and the floor), `stages` (where the time
goes), `formats` (sizes of shards, compression, hashes), `commands` (the real command: workers, memory), and the front
door, `python -m benchmarks.data_prep`.
"""
