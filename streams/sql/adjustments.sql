select a.* from derived.adjustments a
join unnest($1::text[], $2::text[]) as asked (wallet_id, external_ref) using (wallet_id, external_ref)
