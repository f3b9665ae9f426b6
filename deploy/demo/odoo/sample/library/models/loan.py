# mypy: ignore-errors

"""A book that a reader has."""

from datetime import timedelta

from odoo import api, fields, models

LOAN_DAYS = 21


class Loan(models.Model):
    _name = "library.loan"
    _description = "Loan"

    name = fields.Char(string="Book", required=True)
    lent_on = fields.Date(default=fields.Date.today)
    due_on = fields.Date(compute="_compute_due_on", store=True)

    @api.depends("lent_on")
    def _compute_due_on(self):
        for loan in self:
            loan.due_on = loan.lent_on and loan.lent_on + timedelta(days=LOAN_DAYS)
