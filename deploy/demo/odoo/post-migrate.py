# mypy: ignore-errors

"""From 19.0.1.1.0 on, the names of books begin with a capital letter."""


def migrate(cr, version):
    del version
    cr.execute("update library_loan set name = initcap(name)")
