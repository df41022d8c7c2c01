-- Sessions: short-lived tokens that a browser may hold. And two limits that an operator may set, none by default:
-- requests a minute for a key, tokens a month for a wallet.

-- A session acts for its key: wallet, tier, slots and limits are the key's. A row never changes; once it has expired it
-- goes when the key makes another session. Locked behind keys, by whoever has locked its key.
create table state.sessions (
    session_id text primary key,
    sha256     bytea not null check (length(sha256) = 32),
    key_id     text not null references state.keys,
    models     text[],                                      -- by their own names; null is all that the key may use
    origins    text[],                                      -- of the pages that may send it; null is any, and none
    created_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
);
create index sessions_by_key on state.sessions (key_id, expires_at);

-- `rate_us` is GCRA's one number: the time, in microseconds since 1970, by which all that the key was granted would
-- have come at its even pace. A key that rested may send `rpm` at once, and then one every 60 s / rpm.
alter table state.keys
    add column rpm int check (rpm between 1 and 60000),
    add column rate_us bigint not null default 0;

-- Beside the limit the tokens booked in `tokens_month`, its first day in UTC: counted only while there is a limit.
alter table state.wallets
    add column tokens_month_max bigint check (tokens_month_max >= 0),
    add column tokens_month date,
    add column tokens_used bigint not null default 0;
-- Whether anybody has a limit at all. No column in it changes with a request, so updates of rows stay on their page.
create index wallets_with_token_limit on state.wallets (wallet_id) where tokens_month_max is not null;

-- As in 0006, with sessions and the two limits. `a_session`: the id and the hash are a session's, and `a_origin` is the
-- page that sent it, null where none is told. `a_counted` false: a further part of a request that was counted already.
--
-- Outcomes, in order of precedence:
--   catching_up           the server restarted; the projection has not yet read to the log's end of then (C7)
--   owner_lapsed          the calling ingress has no living lease: the expiry may already own its requests (C3)
--   invalid_key           unknown id or another secret
--   session_expired       the same of a session, or its time is over: an expired one may be gone
--   key_revoked           the session's key too
--   origin_not_allowed    the session is not for that page
--   model_not_allowed     the key, or the session, is barred from one of the models
--   rate_limit_exceeded   the key's requests a minute are used up for wait_s seconds
--   monthly_tokens_exceeded  what is booked for the wallet has reached its limit; the month lasts wait_s seconds more
--   open_request_cap      the key has open_max requests open
--   daily_cap_exceeded    a sandbox owner's UTC day is used up
--   insufficient_balance  balance minus holds is below this hold
--   ok
-- Idempotent by request id: a repeated call answers what the first one did and takes nothing twice.
drop function state.admit(uuid, text, bytea, bigint, bigint, text, text, text[], text, bigint, bigint, boolean);
create function state.admit(
    a_request_id uuid, a_key_id text, a_sha256 bytea, a_hold_shiver_nano bigint, a_hold_usdc_nano bigint, a_owner text,
    a_node_id text, a_models text[], a_lane text, a_lane_offset bigint, a_cap_nano_usd bigint, a_dry_run boolean,
    a_session boolean, a_origin text, a_counted boolean,
    out outcome text, out key_id text, out wallet_id text, out tier text, out payer text, out asset text,
    out rate_nano_usd bigint, out cap_day date, out now_ms bigint, out hold_nano bigint, out available_nano bigint,
    out open_max int, out rpm int, out tokens_month_max bigint, out wait_s int
) language plpgsql as $$
declare
    k state.keys;
    s state.sessions;
    w state.wallets;
    day_used bigint;
    hold_nano_usd bigint := 0;
    now_us bigint;
    new_rate_us bigint;
    month_end timestamp;
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

    if a_session then
        select * into s from state.sessions where session_id = a_key_id;
        if not found or s.sha256 <> a_sha256 then
            outcome := 'session_expired';
            return;
        end if;
        select * into k from state.keys where keys.key_id = s.key_id for no key update;
        if s.expires_at <= clock_timestamp() then -- judged behind the wait for the key
            outcome := 'session_expired';
            return;
        end if;
    else
        select * into k from state.keys where keys.key_id = a_key_id for no key update;
        if not found or k.sha256 <> a_sha256 then
            outcome := 'invalid_key';
            return;
        end if;
    end if;
    key_id := k.key_id;
    wallet_id := k.wallet_id;
    tier := k.tier;
    open_max := k.open_max;
    if k.revoked_at is not null then
        outcome := 'key_revoked';
        return;
    end if;
    -- Without a session s is all null, and so allows everything.
    if s.origins is not null and (a_origin is null or a_origin <> all (s.origins)) then
        outcome := 'origin_not_allowed';
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
    if not a_models <@ coalesce(k.models, a_models) or not a_models <@ coalesce(s.models, a_models) then
        outcome := 'model_not_allowed';
        return;
    end if;
    if k.rpm is not null and a_counted then
        rpm := k.rpm;
        -- By the clock of now, not of before the wait for the key: calls that waited together are told apart.
        now_us := floor(extract(epoch from clock_timestamp()) * 1000000);
        -- A minute ahead is the most that is ever granted: far beyond it, the server's clock was put back since.
        new_rate_us := (case when k.rate_us > now_us + 120000000 then now_us else greatest(k.rate_us, now_us) end)
            + 60000000 / rpm;
        if new_rate_us - now_us > rpm * (60000000 / rpm) then
            wait_s := ceil((new_rate_us - now_us - rpm * (60000000 / rpm)) / 1000000.0);
            outcome := 'rate_limit_exceeded';
            return;
        end if;
    end if;
    if w.tokens_month_max is not null then
        tokens_month_max := w.tokens_month_max;
        month_end := date_trunc('month', clock_timestamp() at time zone 'UTC') + interval '1 month';
        -- A count of an earlier month is over.
        if (case when w.tokens_month + interval '1 month' = month_end then w.tokens_used else 0 end) >= tokens_month_max
        then
            wait_s := ceil(extract(epoch from month_end - clock_timestamp() at time zone 'UTC'));
            outcome := 'monthly_tokens_exceeded';
            return;
        end if;
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
    update state.keys set open_requests = open_requests + 1, rate_us = coalesce(new_rate_us, rate_us)
        where keys.key_id = k.key_id;
    if k.tier = 'dev' then
        update state.sandbox_days d set used_nano_usd = d.used_nano_usd + hold_nano_usd
            where d.owner_id = w.owner_id and d.day = cap_day;
    else
        update state.wallets set held_nano = held_nano + admit.hold_nano where wallets.wallet_id = w.wallet_id;
    end if;
end $$;

-- A new session of a key, or why not: invalid_key, key_revoked, model_not_allowed, or session_cap, and then the first
-- of the key's living sessions ends in wait_s seconds. What has expired goes first. The key's row orders the calls, and
-- revocations. `models` are those that the session may use, null for all.
create function state.open_session(
    a_key_id text, a_sha256 bytea, a_session_id text, a_session_sha256 bytea, a_expires_in_s int, a_models text[],
    a_origins text[], a_living_max int,
    out outcome text, out expires_s bigint, out models text[], out wait_s int
) language plpgsql as $$
declare
    k state.keys;
    living bigint;
    first_end timestamptz;
begin
    select * into k from state.keys where key_id = a_key_id for no key update;
    if not found or k.sha256 <> a_sha256 then
        outcome := 'invalid_key';
        return;
    end if;
    if k.revoked_at is not null then
        outcome := 'key_revoked';
        return;
    end if;
    if not coalesce(a_models, '{}') <@ coalesce(k.models, a_models, '{}') then
        outcome := 'model_not_allowed';
        return;
    end if;
    delete from state.sessions where key_id = k.key_id and expires_at <= clock_timestamp();
    select count(*), min(expires_at) into living, first_end from state.sessions where key_id = k.key_id;
    if living >= a_living_max then
        wait_s := greatest(1, ceil(extract(epoch from first_end - clock_timestamp())));
        outcome := 'session_cap';
        return;
    end if;
    outcome := 'ok';
    models := coalesce(a_models, k.models);
    expires_s := floor(extract(epoch from clock_timestamp())) + a_expires_in_s;
    insert into state.sessions (session_id, sha256, key_id, models, origins, expires_at)
        values (a_session_id, a_session_sha256, k.key_id, a_models, a_origins, to_timestamp(expires_s));
end $$;

-- The tokens that a wallet's requests came to in this UTC month, as far as they are booked. An embedding delivers its
-- prompt, which counts once.
create function state.month_tokens(a_wallet_id text, out month date, out tokens bigint) language sql stable as $$
    with bounds as (select date_trunc('month', clock_timestamp() at time zone 'UTC') as since)
    select since::date, coalesce((
        select sum(r.prompt_tokens + case when m.kind = 'embedding' then 0 else r.completion_tokens end)
        from derived.requests r left join state.models m using (model)
        where r.wallet_id = a_wallet_id and r.status = 'charged'
          and r.ended_ms >= (extract(epoch from since at time zone 'UTC') * 1000)::bigint
    ), 0)::bigint from bounds
$$;

-- Sets, or with null takes away, the limit of a wallet, and counts its month. False for no such wallet. The projection
-- counts behind the lock on the wallet's row: what it has committed is counted here, by a statement of its own behind
-- that lock, and what it has not it counts itself.
create function state.limit_tokens(a_wallet_id text, a_tokens_month_max bigint) returns boolean
language plpgsql as $$
begin
    update state.wallets set tokens_month_max = a_tokens_month_max where wallet_id = a_wallet_id;
    if not found then
        return false;
    end if;
    perform state.recount_tokens(a_wallet_id);
    return true;
end $$;

-- The counts of all wallets with a limit anew, or that of one, from the books as they are. The caller has the locks.
create function state.recount_tokens(a_wallet_id text default null) returns void
language plpgsql as $$
begin
    update state.wallets w set (tokens_month, tokens_used) = (select * from state.month_tokens(w.wallet_id))
        where w.tokens_month_max is not null and w.wallet_id = coalesce(a_wallet_id, w.wallet_id);
end $$;

-- As in 0003, and where the wallet has a limit its requests' tokens are counted, in the month in which they ended. The
-- rows of derived.requests are there already. An end that comes again finds no admission, and one whose admission a
-- crash forgot is counted when admission is opened (C7): both only once.
create or replace function state.release(a_request_ids uuid[], a_wallet_ids text[], a_charges_nano bigint[])
returns void
language plpgsql as $$
declare
    this_month date := date_trunc('month', clock_timestamp() at time zone 'UTC');
    n record;
begin
    perform from state.keys where key_id in (select a.key_id from state.admissions a
        where a.request_id = any (a_request_ids)) order by key_id for no key update;
    perform from state.wallets where wallet_id in (select a.wallet_id from state.admissions a
        where a.request_id = any (a_request_ids)) order by wallet_id for no key update;
    perform from state.sandbox_days where (owner_id, day) in (select a.owner_id, a.cap_day from state.admissions a
        where a.request_id = any (a_request_ids)) order by owner_id, day for no key update;
    if exists (select from state.wallets w where w.tokens_month_max is not null and w.wallet_id = any (a_wallet_ids))
    then
        -- An ingress whose clock is ahead does not begin a month, and a late end does not go back to one.
        for n in
            select r.wallet_id,
                   least(this_month, date_trunc('month', to_timestamp(r.ended_ms / 1000.0) at time zone 'UTC')::date)
                       as month,
                   sum(r.prompt_tokens + case when m.kind = 'embedding' then 0 else r.completion_tokens end) as tokens
            from unnest(a_request_ids, a_wallet_ids) as e (request_id, wallet_id)
            join state.admissions a on a.request_id = e.request_id and a.wallet_id = e.wallet_id
            join state.wallets w on w.wallet_id = e.wallet_id and w.tokens_month_max is not null
            join derived.requests r on r.request_id = e.request_id and r.wallet_id = e.wallet_id
                and r.status = 'charged'
            left join state.models m on m.model = r.model
            group by 1, 2 order by 1, 2
        loop
            update state.wallets w
                set tokens_used = n.tokens + case when w.tokens_month = n.month then w.tokens_used else 0 end,
                    tokens_month = n.month
                where w.wallet_id = n.wallet_id and (w.tokens_month is null or w.tokens_month <= n.month);
        end loop;
    end if;
    with ended as (
        select * from unnest(a_request_ids, a_wallet_ids, a_charges_nano) as e (request_id, wallet_id, charge_nano)
    ), gone as (
        delete from state.admissions a using ended e where a.request_id = e.request_id and a.wallet_id = e.wallet_id
        returning a.*, case when a.cap_day is null then 0
                            else state.to_nano_usd(e.charge_nano, a.rate_nano_usd) end as kept_nano_usd
    ), freed_slots as (
        update state.keys k set open_requests = open_requests - g.n
        from (select key_id, count(*) as n from gone where slot group by key_id) g where k.key_id = g.key_id
    ), freed_holds as (
        update state.wallets w set held_nano = held_nano - g.held
        from (select wallet_id, sum(hold_nano)::bigint as held from gone where payer = 'wallet:' || wallet_id
              group by wallet_id) g where w.wallet_id = g.wallet_id
    )
    update state.sandbox_days d set used_nano_usd = used_nano_usd - g.unused
    from (select owner_id, cap_day, sum(hold_nano_usd - kept_nano_usd)::bigint as unused from gone
          where cap_day is not null group by owner_id, cap_day) g
    where d.owner_id = g.owner_id and d.day = g.cap_day;
end $$;

-- As in 0008, and the month's tokens are counted anew too.
create or replace function state.open_admission(a_server_id text) returns int
language plpgsql as $$
declare
    restored int;
begin
    if state.server_id() <> a_server_id then
        return null;
    end if;
    restored := state.make_admissions_right();
    perform state.recount_tokens();
    insert into state.readiness (server_id) values (a_server_id)
        on conflict (only_row) do update set server_id = excluded.server_id;
    return restored;
end $$;
