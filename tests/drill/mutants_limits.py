"""More bugs that need servers: of sessions, and of the limits that an operator sets. As in `tests.drill.mutants`."""

from __future__ import annotations

from tests.drill.mutants import ADMIT, Mutant

SESSION = "tests/integration/test_admission_sessions.py::"
LIMIT = "tests/integration/test_admission_limits.py::"


def _mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, file, old, new, tests)


LIMITS: tuple[Mutant, ...] = (
    _mutant(
        "a session's time is judged before the wait for its key",
        ADMIT,
        "        select * into k from state.keys where keys.key_id = s.key_id for no key update;\n"
        "        if s.expires_at <= clock_timestamp() then",
        "        day_used := (s.expires_at <= clock_timestamp())::int;\n"
        "        select * into k from state.keys where keys.key_id = s.key_id for no key update;\n"
        "        if day_used = 1 then",
        f"{SESSION}test_a_session_s_time_is_judged_behind_the_wait_for_its_key",
    ),
    _mutant(
        "a session's secret is not looked at",
        ADMIT,
        "if not found or s.sha256 <> a_sha256 then",
        "if not found then",
        f"{SESSION}test_an_ended_an_unknown_and_a_forged_session_are_told_alike",
    ),
    _mutant(
        "a session for pages is for whoever tells none",
        ADMIT,
        "(a_origin is null or a_origin <> all (s.origins))",
        "a_origin <> all (s.origins)",
        f"{SESSION}test_a_session_for_pages_is_for_these_alone",
    ),
    _mutant(
        "a session's own models are not looked at",
        ADMIT,
        " or not a_models <@ coalesce(s.models, a_models)",
        "",
        f"{SESSION}test_a_session_may_use_fewer_models_than_its_key_and_never_more",
    ),
    _mutant(
        "a session may use more than its key",
        ADMIT,
        "not a_models <@ coalesce(k.models, a_models) or",
        "not a_models <@ coalesce(s.models, k.models, a_models) or",
        f"{SESSION}test_a_session_may_use_fewer_models_than_its_key_and_never_more",
    ),
    _mutant(
        "a session is opened beside a revocation",
        ADMIT,
        "    select * into k from state.keys where key_id = a_key_id for no key update;",
        "    select * into k from state.keys where key_id = a_key_id;",
        f"{SESSION}test_a_revocation_under_way_is_waited_for",
        f"{SESSION}test_a_key_has_so_many_living_sessions_and_its_dead_ones_go",
    ),
    _mutant(
        "a request more than a minute's",
        ADMIT,
        "if new_rate_us - now_us > rpm * (60000000 / rpm) then",
        "if new_rate_us - now_us > (rpm + 1) * (60000000 / rpm) then",
        f"{LIMIT}test_two_ingresses_grant_a_key_its_number_and_no_more",
    ),
    _mutant(
        "a rest earns more than a minute's",
        ADMIT,
        "else greatest(k.rate_us, now_us) end)",
        "else k.rate_us end)",
        f"{LIMIT}test_after_the_burst_they_come_at_an_even_pace",
    ),
    _mutant(
        "a wait is rounded down",
        ADMIT,
        "wait_s := ceil((new_rate_us",
        "wait_s := floor((new_rate_us",
        f"{LIMIT}test_the_wait_that_is_told_is_long_enough_and_no_longer",
    ),
    _mutant(
        "the minute counts the parts of a request",
        ADMIT,
        "if k.rpm is not null and a_counted then",
        "if k.rpm is not null then",
        f"{LIMIT}test_what_is_refused_repeated_or_dry_takes_nothing_of_the_minute",
    ),
    _mutant(
        "last month's tokens count",
        ADMIT,
        "(case when w.tokens_month + interval '1 month' = month_end then w.tokens_used else 0 end)",
        "w.tokens_used",
        f"{LIMIT}test_the_month_s_border",
    ),
    _mutant(
        "a clock that is ahead begins the month",
        ADMIT,
        "least(this_month, date_trunc('month', to_timestamp(r.ended_ms / 1000.0) at time zone 'UTC')::date)",
        "date_trunc('month', to_timestamp(r.ended_ms / 1000.0) at time zone 'UTC')::date",
        f"{LIMIT}test_the_month_s_border",
    ),
    _mutant(
        "a late end of last month begins it again",
        ADMIT,
        " and (w.tokens_month is null or w.tokens_month <= n.month);",
        ";",
        f"{LIMIT}test_the_month_s_border",
    ),
    _mutant(
        "an end that comes again is counted again",
        ADMIT,
        "            join state.admissions a on a.request_id = e.request_id and a.wallet_id = e.wallet_id\n",
        "",
        f"{LIMIT}test_the_projection_counts_the_tokens_of_wallets_with_a_limit",
    ),
    _mutant(
        "a rebuild keeps the old count",
        "streams/rebuild.py",
        'await db.execute("select state.recount_tokens()")',
        "pass",
        f"{LIMIT}test_a_rebuild_counts_the_month_s_tokens_anew",
    ),
    _mutant(
        "a limit counts the month before it has the wallet",
        ADMIT,
        "    update state.wallets set tokens_month_max = a_tokens_month_max where wallet_id = a_wallet_id;\n"
        "    if not found then\n        return false;\n    end if;\n    perform state.recount_tokens(a_wallet_id);",
        "    update state.wallets w set tokens_month_max = a_tokens_month_max,\n"
        "        (tokens_month, tokens_used) = (select * from state.month_tokens(w.wallet_id))\n"
        "        where w.wallet_id = a_wallet_id;\n    if not found then\n        return false;\n    end if;",
        f"{LIMIT}test_a_limit_set_while_the_projection_books_counts_once",
    ),
)
