# mypy: ignore-errors

"""When a book is due."""

from odoo.tests import TransactionCase


class TestLibrary(TransactionCase):
    def test_a_book_is_lent_for_three_weeks(self):
        loan = self.env["library.loan"].create({"name": "Odyssey", "lent_on": "2026-01-01"})
        self.assertEqual((loan.due_on - loan.lent_on).days, 21)

    def test_a_loan_without_a_date_is_never_due(self):
        loan = self.env["library.loan"].create({"name": "Odyssey", "lent_on": False})
        self.assertFalse(loan.due_on)
