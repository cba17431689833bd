"""The client: mount, caches, write-behind, and the ``shoal`` command line."""
