-- Schema state: what coordinates. It is backed up; a replay of the log cannot make it again.
--
-- Row locks are always taken in this order: keys, wallets, sandbox_days, admissions, then derived.accounts; within a
-- table in the order of its primary key. Whoever keeps it cannot deadlock with admit().
create schema state;

create table state.owners (
    owner_id   text primary key,
    created_at timestamptz not null default now()
);

create table state.wallets (
    wallet_id  text primary key check (wallet_id ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$'),
    owner_id   text not null references state.owners,
    asset      text not null default 'SHIVER' check (asset in ('SHIVER', 'USDC')),
    partition  int not null check (partition >= 0),        -- of ledger.events: schemas.topics.partition_of(wallet_id)
    held_nano  bigint not null default 0 check (held_nano >= 0), -- sum over its admissions that this wallet pays
    created_at timestamptz not null default now()
);

create table state.keys (
    key_id        text primary key,
    sha256        bytea not null check (length(sha256) = 32),
    wallet_id     text not null references state.wallets,
    tier          text not null check (tier in ('dev', 'pro', 'ent')),
    name          text not null default '',
    open_max      int not null check (open_max between 0 and 100000),
    open_requests int not null default 0 check (open_requests >= 0), -- its admissions that hold a slot
    created_at    timestamptz not null default now(),
    revoked_at    timestamptz
);
create index keys_by_wallet on state.keys (wallet_id);

-- What a sandbox (dev) owner has used of the day's cap: holds of open requests and charges of ended ones.
create table state.sandbox_days (
    owner_id      text not null references state.owners,
    day           date not null,                           -- UTC
    used_nano_usd bigint not null default 0 check (used_nano_usd >= 0),
    primary key (owner_id, day)
);

create table state.models (
    model          text primary key,
    owned_by       text not null,
    in_nano        bigint not null check (in_nano >= 0),    -- nano SHIVER a prompt token
    out_nano       bigint not null check (out_nano >= 0),
    created_at     timestamptz not null default now()
);

create table state.rates (
    asset         text primary key check (asset in ('SHIVER', 'USDC')),
    nano_usd      bigint not null check (nano_usd > 0),     -- for one whole unit of the asset
    source        text not null,
    set_at        timestamptz not null default now()
);

-- Until an operator sets them: admission needs a rate for every asset.
insert into state.rates (asset, nano_usd, source) values ('SHIVER', 100000, 'default'), ('USDC', 1000000000, 'default');

create table state.providers (
    provider_id text primary key,
    name        text not null,
    created_at  timestamptz not null default now()
);

create table state.nodes (
    node_id     text primary key check (node_id ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$'),
    provider_id text not null references state.providers,
    created_at  timestamptz not null default now()
);

-- One row for each start of an ingress process. A lease that has run out means that it is dead: see streams/expiry.py.
create table state.ingresses (
    boot_id     text primary key,
    started_at  timestamptz not null default now(),
    lease_until timestamptz not null,
    lanes       int not null default 0,                     -- reply topics made, numbered from 0
    left_at     timestamptz                                 -- ended in good order
);

-- A reference of a credit is bound to one wallet and amount before it is appended (S6).
create table state.credit_refs (
    external_ref text primary key,
    wallet_id    text not null references state.wallets,
    asset        text not null,
    amount_nano  bigint not null check (amount_nano > 0),
    created_at   timestamptz not null default now()
);

-- The requests that hold money or a slot. Only release(), called by the projection, removes a row (C1).
create table state.admissions (
    request_id    uuid primary key,
    key_id        text not null,
    wallet_id     text not null,
    owner_id      text not null,
    payer         text not null,                            -- 'wallet:<id>' or 'platform:sandbox'
    asset         text not null,
    hold_nano     bigint not null check (hold_nano >= 0),
    hold_nano_usd bigint not null check (hold_nano_usd >= 0), -- counted against cap_day; 0 without one
    cap_day       date,
    rate_nano_usd bigint,                                   -- of the asset at admission, for all that cap_day counts
    slot          boolean not null default true,
    owner         text not null,                            -- boot id of the ingress
    node_id       text not null,
    model         text not null,
    lane          text not null,
    lane_offset   bigint not null check (lane_offset >= 0),
    admitted_at   timestamptz not null default clock_timestamp()
);
create index admissions_by_owner on state.admissions (owner);

-- Which server's commits the projection has caught up with since it started (C7). See admit() and streams/readiness.py.
create table state.readiness (
    only_row  boolean primary key default true check (only_row),
    server_id text not null
);
insert into state.readiness values (true, 'never');

create function state.server_id() returns text language sql stable as
$$ select extract(epoch from pg_postmaster_start_time())::text $$;

-- Secrets of this deployment that no replay needs. `pseudonyms` keys the HMAC behind x-shiver-node.
create table state.secrets (
    name   text primary key,
    secret bytea not null check (length(secret) >= 32)
);
insert into state.secrets values ('pseudonyms', sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea));
