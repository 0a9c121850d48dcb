"""Scripts that know nothing of us, and a command that runs them plain and enabled.

``python -m tests.scripts`` prints the table. Each script prints one line of JSON at its end: the
numbers that it has computed. The packages are the extra ``scripts``.
"""
