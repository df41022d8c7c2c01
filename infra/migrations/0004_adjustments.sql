-- Corrections by hand: adjustment.posted of the log.

-- As of credits: a reference is bound to one wallet and amount before it is appended (S6). The two kinds of references
-- are apart, so that the correction of a deposit may carry the deposit's own.
create table state.adjustment_refs (
    external_ref text primary key,
    wallet_id    text not null references state.wallets,
    asset        text not null check (asset in ('SHIVER', 'USDC')),
    amount_nano  bigint not null check (amount_nano <> 0),
    created_at   timestamptz not null default now()
);

create table derived.adjustments (
    wallet_id    text not null,
    external_ref text not null,
    asset        text not null check (asset in ('SHIVER', 'USDC')),
    amount_nano  bigint not null check (amount_nano <> 0),
    reason       text not null,
    operator     text not null,
    approver     text,
    partition    int not null,
    "offset"     bigint not null,
    primary key (wallet_id, external_ref)
);
