"""What every room needs: files, locks, processes, printing.

It decides no policy. Begin with ``trusted_files``.
"""
