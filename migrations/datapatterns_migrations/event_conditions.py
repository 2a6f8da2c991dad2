"""Functions for appends under a condition on tags; part of dp0010."""

CREATE = """
-- Writers of tagged events hold shared locks on their tags, a condition takes an exclusive lock on
-- one tag of each of its items: a matching event carries all of them, so one is enough. Sorted, so
-- that no two transactions wait for each other. A collision of hashes costs a wait.
-- The server has room for some thousand locks: a transaction with more than 200 of them shuts the
-- gate for all conditions instead, until it ends. Conditions pass it beside each other.
CREATE FUNCTION {schema}.lock_tags(p_tenant text, p_shared text[], p_exclusive text[])
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    class int := '{schema}.event_tag'::regclass::oid::int;
    note text := 'datapatterns.tags_' || '{schema}.event_tag'::regclass::oid;  -- ends with locks
    held integer := coalesce(nullif(current_setting(note, true), ''), '0')::integer;
    wanted integer := (SELECT count(DISTINCT u.tag) FROM unnest(p_shared) AS u (tag));
    lock record;
BEGIN
    IF held + wanted > 200 AND wanted > 0 THEN
        p_shared := NULL;
        IF cardinality(p_exclusive) > 0 THEN  -- one step: two that hold SHARE both wait for more
            LOCK TABLE {schema}.tag_gate IN SHARE ROW EXCLUSIVE MODE;
        ELSE
            LOCK TABLE {schema}.tag_gate IN SHARE MODE;
        END IF;
    ELSIF cardinality(p_exclusive) > 0 THEN
        LOCK TABLE {schema}.tag_gate IN ROW EXCLUSIVE MODE;
    END IF;
    IF wanted > 0 AND held <= 200 THEN
        PERFORM set_config(note, (held + wanted)::text, true);
    END IF;
    FOR lock IN
        SELECT hashtext(p_tenant || E'\\n' || u.tag) AS key, bool_or(u.exclusive) AS exclusive
          FROM (SELECT unnest(p_shared), false UNION ALL SELECT unnest(p_exclusive), true)
            AS u (tag, exclusive)
         WHERE u.tag <> ''
         GROUP BY 1 ORDER BY 1
    LOOP
        IF lock.exclusive THEN
            PERFORM pg_advisory_xact_lock(class, lock.key);
        ELSE
            PERFORM pg_advisory_xact_lock_shared(class, lock.key);
        END IF;
    END LOOP;
END $$;

-- Whether an event after p_after matches an item of p_condition:
-- [{"tags": [all of these], "types": [one of these, or absent]}, ...]. Call it under lock_tags.
CREATE FUNCTION {schema}.matches_after(p_tenant text, p_condition jsonb, p_after bigint)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM jsonb_array_elements(p_condition) AS item
          JOIN {schema}.event_tag AS t
            ON t.tenant = p_tenant AND t.tag = item -> 'tags' ->> 0 AND t.position > p_after
         WHERE (item -> 'types' IS NULL OR EXISTS (
                   SELECT FROM {schema}.event_type AS y
                    WHERE y.id = t.type_id AND item -> 'types' ? y.name))
           AND NOT EXISTS (
                   SELECT FROM jsonb_array_elements_text(item -> 'tags') AS wanted (tag)
                    WHERE NOT EXISTS (
                          SELECT FROM {schema}.event_tag AS o
                           WHERE o.tenant = p_tenant AND o.tag = wanted.tag
                             AND o.position = t.position)))
$$;

-- Refuses what matches_after would not understand: it would match nothing, and the append would go
-- through unchecked. Returns whether the transaction sees what its locks have waited for.
CREATE FUNCTION {schema}.check_condition(p_condition jsonb, p_after bigint)
RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_after IS NULL OR p_condition = '[]' OR EXISTS (
        SELECT FROM jsonb_array_elements(p_condition) AS item
         WHERE coalesce(jsonb_array_length(item -> 'tags'), 0) = 0
            OR jsonb_path_exists(item, '$.tags[*] ? (@.type() != "string")')
            OR item -> 'types' = '[]' OR item - 'tags' - 'types' <> '{}'
            OR jsonb_path_exists(item, '$.types[*] ? (@.type() != "string")'))
    THEN
        RAISE EXCEPTION 'the condition of append_events is malformed';
    END IF;
    RETURN current_setting('transaction_isolation') = 'read committed';
END $$;
"""

DROP = """
DROP FUNCTION {schema}.matches_after(text, jsonb, bigint);
DROP FUNCTION {schema}.check_condition(jsonb, bigint);
DROP FUNCTION {schema}.lock_tags(text, text[], text[]);
"""
