-- The open requests in the order of the books' digest; a uuid sorts as its text does.
select * from derived.requests where status = 'open' order by partition, request_id
