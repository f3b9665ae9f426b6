# mypy: ignore-errors

"""A migration that changes data, and then raises on purpose."""


def migrate(cr, version):
    del version
    cr.execute("update library_loan set name = 'lost'")
    cr.execute("commit")
    cr.execute("update library_loan set shelf = 1")
