{
    "name": "Library",
    "version": "19.0.1.0.0",
    "summary": "Lend books for three weeks",
    "author": "The ops-worker authors",
    "license": "LGPL-3",
    "depends": ["base"],
    "data": ["security/ir.model.access.csv", "views/library.xml"],
    "demo": ["demo/loans.xml"],
}
