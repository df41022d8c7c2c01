update derived.requests r
set status = n.status, owner = n.owner, owner_epoch = n.owner_epoch, model = n.model, ended_ms = n.ended_ms, how = n.how,
    prompt_tokens = n.prompt_tokens, completion_tokens = n.completion_tokens, charge_nano = n.charge_nano,
    payer_charge_nano = n.payer_charge_nano, clamped = n.clamped
from unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::text[], $6::bigint[], $7::text[], $8::bigint[],
            $9::bigint[], $10::bigint[], $11::bigint[], $12::boolean[])
     as n (request_id, status, owner, owner_epoch, model, ended_ms, how, prompt_tokens, completion_tokens, charge_nano,
           payer_charge_nano, clamped)
where r.request_id = n.request_id and r.partition = $13
