-- The catalog as data: what a model is, its price in each asset, other names. Beside it what an operator says of
-- providers and keys, and admission in the asset of the wallet.

alter table state.models
    add column kind text not null default 'chat' check (kind in ('chat', 'embedding')),
    add column takes_images boolean not null default false,
    add column context_tokens int check (context_tokens > 0), -- as published; what serves may have less
    add column in_nano_usdc bigint check (in_nano_usdc >= 0), -- nano USDC a prompt token
    add column out_nano_usdc bigint check (out_nano_usdc >= 0);
-- Models of before: at the reference rate of the price list, $0.0001 for one SHIVER, rounded up.
update state.models set
    in_nano_usdc = ceil(in_nano / 10000.0), out_nano_usdc = ceil(out_nano / 10000.0),
    kind = case when model like 'shark-embed-%' then 'embedding' else 'chat' end,
    takes_images = model like '%-vision';
alter table state.models alter column in_nano_usdc set not null, alter column out_nano_usdc set not null;

-- Other names of a model. A model's own name goes before an alias of the same spelling.
create table state.model_aliases (
    alias      text primary key check (length(alias) between 1 and 200 and alias <> 'auto'),
    model      text not null references state.models on delete cascade,
    created_at timestamptz not null default now()
);

-- What the operator thinks of a provider, 0 to 1; `trusted_only` asks for more than 0.8.
alter table state.providers
    add column trust numeric(4, 3) not null default 0.5 check (trust between 0 and 1);

-- The models that a key may use, by their own names; null is all of them.
alter table state.keys add column models text[];

-- What a wallet used in a month (GET /v1/usage).
create index requests_by_wallet on derived.requests (wallet_id, ended_ms) where status = 'charged';

-- Which attempt the node and the model of the row are of: the expiry counts its records.
alter table state.admissions add column attempt smallint not null default 1 check (attempt between 1 and 16);

-- As in 0003, with three changes: the caller sends the hold in each asset, and the wallet's own is taken; a key may be
-- barred from models; and a balance may be wider than 64 bits. `a_models` is what will serve, then its fallbacks.
--
-- Outcomes, in order of precedence:
--   catching_up           the server restarted; the projection has not yet read to the log's end of then (C7)
--   owner_lapsed          the calling ingress has no living lease: the expiry may already own its requests (C3)
--   invalid_key           unknown id or another secret
--   key_revoked
--   model_not_allowed     the key is barred from one of the models
--   open_request_cap      the key has open_max requests open
--   daily_cap_exceeded    a sandbox owner's UTC day is used up
--   insufficient_balance  balance minus holds is below this hold
--   ok
-- Idempotent by request id: a repeated call answers what the first one did and takes nothing twice.
drop function state.admit(uuid, text, bytea, bigint, text, text, text, text, bigint, bigint, boolean);
create function state.admit(
    a_request_id uuid, a_key_id text, a_sha256 bytea, a_hold_shiver_nano bigint, a_hold_usdc_nano bigint, a_owner text,
    a_node_id text, a_models text[], a_lane text, a_lane_offset bigint, a_cap_nano_usd bigint, a_dry_run boolean,
    out outcome text, out wallet_id text, out tier text, out payer text, out asset text, out rate_nano_usd bigint,
    out cap_day date, out now_ms bigint, out hold_nano bigint, out available_nano bigint, out open_max int
) language plpgsql as $$
declare
    k state.keys;
    w state.wallets;
    day_used bigint;
    hold_nano_usd bigint := 0;
begin
    -- Local to this transaction: an admission that a crash forgets is made again from the log (C7), so it need not wait
    -- for the disk.
    perform set_config('synchronous_commit', 'off', true);
    now_ms := floor(extract(epoch from clock_timestamp()) * 1000);
    if not exists (select from state.readiness r where r.server_id = state.server_id()) then
        outcome := 'catching_up';
        return;
    end if;
    if not exists (select from state.ingresses i where i.boot_id = a_owner and i.lease_until > clock_timestamp()) then
        outcome := 'owner_lapsed';
        return;
    end if;

    select * into k from state.keys where key_id = a_key_id for no key update;
    if not found or k.sha256 <> a_sha256 then
        outcome := 'invalid_key';
        return;
    end if;
    wallet_id := k.wallet_id;
    tier := k.tier;
    open_max := k.open_max;
    if k.revoked_at is not null then
        outcome := 'key_revoked';
        return;
    end if;
    select * into w from state.wallets where wallets.wallet_id = k.wallet_id for no key update;
    asset := w.asset;
    select r.nano_usd into rate_nano_usd from state.rates r where r.asset = w.asset;

    -- After the locks, so that a repeated call waits for the first one and then sees its row.
    select a.payer, a.cap_day, a.hold_nano into payer, cap_day, hold_nano
        from state.admissions a where a.request_id = a_request_id;
    if found then
        outcome := 'ok';
        return;
    end if;
    -- No other asset has a price: the table's CHECK has these two.
    hold_nano := case w.asset when 'SHIVER' then a_hold_shiver_nano when 'USDC' then a_hold_usdc_nano end;
    if not a_models <@ coalesce(k.models, a_models) then
        outcome := 'model_not_allowed';
        return;
    end if;
    if k.open_requests >= k.open_max then
        outcome := 'open_request_cap';
        return;
    end if;

    if k.tier = 'dev' then
        payer := 'platform:sandbox';
        cap_day := (clock_timestamp() at time zone 'UTC')::date;
        hold_nano_usd := state.to_nano_usd(hold_nano, rate_nano_usd);
        select d.used_nano_usd into day_used from state.sandbox_days d
            where d.owner_id = w.owner_id and d.day = cap_day for no key update;
        if not found then
            -- There must be a row to lock: two wallets of one owner may both be at the day's first request.
            insert into state.sandbox_days (owner_id, day) values (w.owner_id, cap_day) on conflict do nothing;
            select d.used_nano_usd into day_used from state.sandbox_days d
                where d.owner_id = w.owner_id and d.day = cap_day for no key update;
        end if;
        available_nano := a_cap_nano_usd - day_used;
        if available_nano < hold_nano_usd then
            outcome := 'daily_cap_exceeded';
            return;
        end if;
    else
        payer := 'wallet:' || w.wallet_id;
        -- The wallet's row is locked: the projection changes balance and held_nano in one transaction behind that lock.
        -- A hold is at most 1e18: what lies beyond a bigint on either side is as good as its last number.
        select greatest(least(coalesce(sum(c.balance_nano), 0) - w.held_nano, 9223372036854775807),
                        -9223372036854775807) into available_nano
            from derived.accounts c
            where c.account = payer and c.asset = w.asset and c.partition = w.partition;
        if available_nano < hold_nano then
            outcome := 'insufficient_balance';
            return;
        end if;
    end if;
    outcome := 'ok';
    if a_dry_run then
        return;
    end if;

    -- After this point the call succeeds.
    insert into state.admissions (request_id, key_id, wallet_id, owner_id, payer, asset, hold_nano, hold_nano_usd,
                                  cap_day, rate_nano_usd, owner, node_id, model, lane, lane_offset)
        values (a_request_id, k.key_id, w.wallet_id, w.owner_id, payer, w.asset, hold_nano, hold_nano_usd,
                cap_day, rate_nano_usd, a_owner, a_node_id, a_models[1], a_lane, a_lane_offset);
    update state.keys set open_requests = open_requests + 1 where key_id = k.key_id;
    if k.tier = 'dev' then
        update state.sandbox_days d set used_nano_usd = d.used_nano_usd + hold_nano_usd
            where d.owner_id = w.owner_id and d.day = cap_day;
    else
        update state.wallets set held_nano = held_nano + admit.hold_nano where wallets.wallet_id = w.wallet_id;
    end if;
end $$;

-- Another node, maybe of another model, has taken the request over before its first token. False where the admission
-- is no longer the caller's: then nothing may be sent.
create function state.move_admission(a_request_id uuid, a_owner text, a_node_id text, a_model text, a_attempt int)
returns boolean language sql as $$
    update state.admissions set node_id = a_node_id, model = a_model, attempt = a_attempt
    where request_id = a_request_id and owner = a_owner and slot and attempt < a_attempt
    returning true
$$;
