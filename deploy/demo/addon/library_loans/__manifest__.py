{
    "name": "Library Loans",
    "version": "18.0.1.2.0",
    "summary": "Lend books, watch due dates, charge late fees",
    "category": "Services/Library",
    "author": "The ops-worker authors",
    "license": "LGPL-3",
    "depends": ["base", "mail"],
    "data": [
        "security/ir.model.access.csv",
        "views/book_views.xml",
        "views/loan_views.xml",
        "views/menus.xml",
    ],
    "installable": True,
    "application": True,
}
