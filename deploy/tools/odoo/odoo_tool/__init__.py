"""The entry program of the Odoo tool images: ``python -m odoo_tool test|build|backup|restore|postgres``.

It is thin over other programs: git, pip, Odoo itself, manifestoo, checklog-odoo, coverage, restic and the clients of
PostgreSQL. ``steps.py`` prints what happens, ``__main__.py`` has the arguments, and each other file is one
part.
"""
