"""The program in the demo's tool image: build, test, deploy, backup and upgrade of one Odoo add-on."""
