-- A small library in the shape of an Odoo database.

create role odoo login password :'password';
create database library owner odoo;
\connect library
set role odoo;
select setseed(0.42) \g /dev/null

create table res_partner (
    id serial primary key,
    name text not null,
    email text unique,
    city text,
    active boolean not null default true,
    create_date timestamp not null
);
create table ir_module_module (
    id serial primary key,
    name text not null unique,
    state text not null,
    latest_version text
);
create table library_book (
    id serial primary key,
    name text not null,
    author text,
    isbn text,
    copies integer not null check (copies > 0)
);
create table library_loan (
    id serial primary key,
    book_id integer not null references library_book,
    partner_id integer not null references res_partner,
    date_start date not null,
    date_due date not null,
    date_returned date,
    fee numeric(6, 2) not null default 0
);
create index library_loan_open_idx on library_loan (partner_id) where date_returned is null;

insert into ir_module_module (name, state, latest_version) values
    ('base', 'installed', '18.0.1.3'),
    ('mail', 'installed', '18.0.1.18'),
    ('library_loans', 'installed', '18.0.1.2.0');

insert into res_partner (name, email, city, create_date)
select
    (array['Ada', 'Bo', 'Chloé', 'Dmitri', 'Eşref', 'Fatima', 'Gülşen', 'Hà'])[1 + n % 8] || ' '
        || (array['Ågren', 'Brânză', 'Čapek', 'Díaz', 'Eriksen', 'Fröhlich', 'Garnier'])[1 + n % 7] || ' ' || n,
    'reader' || n || '@library.example',
    (array['Lund', 'Porto', 'Zürich', 'Łódź'])[1 + n % 4],
    timestamp '2024-01-01' + n * interval '7 hours'
from generate_series(1, 1200) as n;

insert into library_book (name, author, isbn, copies)
select 'Volume ' || n, 'Author ' || (1 + n % 230), '978' || lpad(n::text, 10, '0'), 1 + n % 4
from generate_series(1, 900) as n;

insert into library_loan (book_id, partner_id, date_start, date_due, date_returned, fee)
select book, partner, start, start + 28, case when late < 30 then start + 28 + late end, greatest(0, late - 2) * 0.25
from (
    select
        1 + (random() * 899)::integer as book, 1 + (random() * 1199)::integer as partner,
        date '2025-01-01' + n / 15 as start, -20 + (random() * 55)::integer as late
    from generate_series(1, 6000) as n
) as loans;

analyze;
