"""What a save costs on a GPU, and that it is exact there: `make gpu` and `make gpu-table`.

Each part runs in a process of its own, with a limit: what fails, hangs or loses the card is a line, and the next goes
on. Where there is no CUDA device every part runs dry on the CPU, with sizes that measure nothing.
"""
