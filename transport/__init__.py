"""What the processes say to each other, and how the bytes get there.

Bottom layer: it knows no inode and no chunk server, and imports nothing else of ours.
"""
