"""Functions that turn ``event`` into a table partitioned by position, and back; part of dp0012.

A later revision that adds triggers to ``event`` adds them to its partitions, too: triggers for
statements fire only on the table that the statement names. Columns, checks and indexes reach
partitions by themselves.
"""

CREATE = """
-- Of the table that a view or function finds under the name event, whatever it is now.
CREATE FUNCTION {schema}.event_partition_list()
RETURNS TABLE (name text, lower_bound bigint, upper_bound bigint, is_rest boolean)
LANGUAGE sql STABLE AS $$
    SELECT c.relname::text,
           substring(b.bound FROM 'FROM \\(''?(-?[0-9]+)''?\\)')::bigint,
           substring(b.bound FROM 'TO \\(''?(-?[0-9]+)''?\\)')::bigint,
           b.bound = 'DEFAULT'
      FROM pg_catalog.pg_inherits AS i
      JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
     CROSS JOIN LATERAL (SELECT pg_catalog.pg_get_expr(c.relpartbound, c.oid)) AS b (bound)
     WHERE i.inhparent = '{schema}.event'::regclass
$$;

-- What depends on event by number, and so follows it when it is renamed.
CREATE FUNCTION {schema}.event_views() RETURNS TABLE (name text, query text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT r.ev_class::regclass::text, pg_get_viewdef(r.ev_class)
      FROM pg_depend AS d JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass
       AND r.oid = d.objid
     WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = '{schema}.event'::regclass
$$;

CREATE FUNCTION {schema}.copy_event_rights(p_from regclass, p_to regclass) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    held record;
BEGIN
    EXECUTE (SELECT format('ALTER TABLE %s OWNER TO %I', p_to, pg_get_userbyid(relowner))
               FROM pg_catalog.pg_class WHERE oid = p_from);
    FOR held IN
        SELECT a.privilege_type, NULL::name AS part, a.grantee, a.is_grantable
          FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = p_from AND a.grantee <> c.relowner
        UNION ALL
        SELECT a.privilege_type, t.attname, a.grantee, a.is_grantable
          FROM pg_catalog.pg_attribute AS t, pg_catalog.aclexplode(t.attacl) AS a
         WHERE t.attrelid = p_from
    LOOP
        EXECUTE format('GRANT %s%s ON %s TO %s%s', held.privilege_type,
            coalesce('(' || quote_ident(held.part) || ')', ''), p_to,
            CASE held.grantee WHEN 0 THEN 'PUBLIC'
            ELSE quote_ident(pg_get_userbyid(held.grantee)) END,
            CASE WHEN held.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END $$;

-- Nobody needs rights on a partition: what goes through event is checked there.
CREATE FUNCTION {schema}.withdraw_event_rights(p_from regclass) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'
               ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
          FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = p_from AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', p_from, held.role);
    END LOOP;
END $$;

-- A partition begins as a table of its own, so that neither appends nor reads wait while it is
-- made. Two of its guards are its own: versions are unique in each partition, across them by the
-- stream's row; and what writes to it directly must raise the fence, too.
CREATE FUNCTION {schema}.add_event_partition(p_name text, p_lower bigint, p_upper bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE {schema}.%I (LIKE {schema}.event INCLUDING ALL'
        ' EXCLUDING INDEXES, CONSTRAINT %I PRIMARY KEY (position),'
        ' CONSTRAINT %I UNIQUE (stream_id, version))',
        p_name, 'pk_' || p_name, 'uq_' || p_name || '_stream_id_version');
    EXECUTE (SELECT format('ALTER TABLE {schema}.%I OWNER TO %I', p_name,
                           pg_get_userbyid(relowner))
               FROM pg_catalog.pg_class WHERE oid = '{schema}.event'::regclass);
    PERFORM {schema}.withdraw_event_rights(format('{schema}.%I', p_name)::regclass);
    PERFORM {schema}.protect_events(format('{schema}.%I', p_name)::regclass);
    IF p_upper IS NULL THEN
        EXECUTE format('ALTER TABLE {schema}.event ATTACH PARTITION {schema}.%I DEFAULT', p_name);
    ELSE
        EXECUTE format('ALTER TABLE {schema}.event ATTACH PARTITION {schema}.%I'
            ' FOR VALUES FROM (%s) TO (%s)', p_name, p_lower, p_upper);
    END IF;
END $$;

-- event becomes its own first partition, up to p_bound. A valid check ck_event_bound must say so
-- already: then nothing is scanned under the lock.
CREATE FUNCTION {schema}.partition_events(p_bound bigint, p_size bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    first text := 'event_p' || p_bound;
    view record;
    views jsonb := (SELECT jsonb_object_agg(v.name, v.query) FROM {schema}.event_views() AS v);
    foreign_view text;
BEGIN
    LOCK TABLE {schema}.event IN ACCESS EXCLUSIVE MODE;
    IF p_size < 1 OR NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint
         WHERE conrelid = '{schema}.event'::regclass AND conname = 'ck_event_bound'
           AND convalidated) THEN
        RAISE EXCEPTION 'event has no valid check ck_event_bound';
    END IF;
    SELECT string_agg(v.name, ', ') INTO foreign_view
      FROM {schema}.event_views() AS v WHERE v.name NOT LIKE '{schema}.%';
    IF foreign_view IS NOT NULL THEN
        RAISE EXCEPTION 'the view % reads event, and would read one partition only', foreign_view
            USING HINT = 'Let it read event_all, or drop it and create it again afterwards.';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_publication_rel
                WHERE prrelid = '{schema}.event'::regclass)
       OR EXISTS (SELECT FROM pg_catalog.pg_policy WHERE polrelid = '{schema}.event'::regclass)
       OR EXISTS (SELECT FROM pg_catalog.pg_constraint
                   WHERE confrelid = '{schema}.event'::regclass)
       OR EXISTS (SELECT FROM pg_catalog.pg_trigger
                   WHERE tgrelid = '{schema}.event'::regclass AND NOT tgisinternal
                     AND tgname NOT IN ('append_only', 'moves_only', 'raise_fence')) THEN
        RAISE EXCEPTION 'a publication, policy, foreign key or trigger names event'
            USING HINT = 'It would stay with the first partition. Drop it, and create it again.';
    END IF;

    EXECUTE format('ALTER TABLE {schema}.event RENAME CONSTRAINT pk_event TO %I', 'pk_' || first);
    EXECUTE format('ALTER TABLE {schema}.event RENAME CONSTRAINT uq_event_stream_id_version'
        ' TO %I', 'uq_' || first || '_stream_id_version');
    EXECUTE format('ALTER TABLE {schema}.event RENAME TO %I', first);
    EXECUTE format('CREATE TABLE {schema}.event (LIKE {schema}.%I INCLUDING ALL EXCLUDING INDEXES'
        ' EXCLUDING STATISTICS, CONSTRAINT pk_event PRIMARY KEY (position))'
        ' PARTITION BY RANGE (position)', first);
    ALTER TABLE {schema}.event DROP CONSTRAINT ck_event_bound;
    -- What default privileges gave to a new table, nobody had on the old one.
    PERFORM {schema}.withdraw_event_rights('{schema}.event'::regclass);
    PERFORM {schema}.copy_event_rights(format('{schema}.%I', first)::regclass,
                                       '{schema}.event'::regclass);
    PERFORM {schema}.withdraw_event_rights(format('{schema}.%I', first)::regclass);
    PERFORM {schema}.protect_events('{schema}.event');
    EXECUTE format('ALTER TABLE {schema}.event ATTACH PARTITION {schema}.%I'
        ' FOR VALUES FROM (MINVALUE) TO (%s)', first, p_bound);
    EXECUTE format('ALTER TABLE {schema}.%I DROP CONSTRAINT ck_event_bound', first);
    PERFORM {schema}.add_event_partition('event_p' || p_bound + p_size, p_bound, p_bound + p_size);
    PERFORM {schema}.add_event_partition('event_rest', NULL, NULL);
    FOR view IN SELECT key AS name, value AS query FROM jsonb_each_text(views) LOOP
        EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', view.name, view.query);
    END LOOP;
END $$;

-- Makes partitions until p_ahead of them are empty; returns how many. For a worker: it can make
-- none that is not needed. Where it came too late, events are in event_rest; they stay there,
-- and the next partition begins behind all positions that are drawn.
CREATE FUNCTION {schema}.extend_event_partitions(p_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made integer := 0;
    low bigint;
    size bigint;
    drawn bigint := pg_sequence_last_value('{schema}.event_position');
BEGIN
    IF p_ahead NOT BETWEEN 1 AND 100 THEN
        RAISE EXCEPTION 'keep 1 to 100 partitions ahead';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_partitioned_table
                    WHERE partrelid = '{schema}.event'::regclass) THEN
        RETURN 0;
    END IF;
    LOCK TABLE {schema}.event IN SHARE UPDATE EXCLUSIVE MODE;
    SELECT p.upper_bound, p.upper_bound - p.lower_bound INTO low, size
      FROM {schema}.event_partition_list() AS p
     WHERE p.upper_bound IS NOT NULL AND p.lower_bound IS NOT NULL
     ORDER BY p.upper_bound DESC LIMIT 1;
    IF drawn >= low THEN
        low := low + ((drawn - low) / size + 1) * size;
    END IF;
    WHILE low - drawn <= p_ahead * size AND made < 100 LOOP
        PERFORM {schema}.add_event_partition('event_p' || low + size, low, low + size);
        low := low + size;
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

-- Old partitions whose events are all in the archive. An event that comes back goes to event_rest.
-- The newest stays: extend_event_partitions() goes on behind it.
CREATE FUNCTION {schema}.drop_empty_event_partitions() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    part record;
    filled boolean;
    dropped integer := 0;
BEGIN
    LOCK TABLE {schema}.event IN ACCESS EXCLUSIVE MODE;  -- nobody holds a position, and no row
    FOR part IN
        SELECT p.name FROM {schema}.event_partition_list() AS p
         WHERE p.upper_bound <= pg_sequence_last_value('{schema}.event_position')
           AND p.upper_bound < (SELECT max(n.upper_bound) FROM {schema}.event_partition_list() AS n)
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM {schema}.%I)', part.name) INTO filled;
        IF NOT filled THEN
            EXECUTE format('DROP TABLE {schema}.%I', part.name);
            dropped := dropped + 1;
        END IF;
    END LOOP;
    RETURN dropped;
END $$;

-- One table again: the oldest partition, and a copy of what is in the others, under the lock.
CREATE FUNCTION {schema}.unpartition_events() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parts text[];
    part text;
    kept text;
    names text;
    view record;
    views jsonb := (SELECT jsonb_object_agg(v.name, v.query) FROM {schema}.event_views() AS v);
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_partitioned_table
                    WHERE partrelid = '{schema}.event'::regclass) THEN
        RETURN;
    END IF;
    LOCK TABLE {schema}.event IN ACCESS EXCLUSIVE MODE;
    parts := ARRAY(SELECT p.name FROM {schema}.event_partition_list() AS p
                    ORDER BY p.upper_bound NULLS LAST);
    kept := parts[1];
    SELECT string_agg(quote_ident(attname), ', ') INTO names FROM pg_catalog.pg_attribute
     WHERE attrelid = '{schema}.event'::regclass AND attnum > 0 AND NOT attisdropped;
    ALTER TABLE {schema}.event RENAME CONSTRAINT pk_event TO pk_event_before;
    FOREACH part IN ARRAY parts LOOP
        EXECUTE format('ALTER TABLE {schema}.event DETACH PARTITION {schema}.%I', part);
        IF part <> kept THEN
            EXECUTE format('INSERT INTO {schema}.%I (%s) SELECT %s FROM {schema}.%I'
                ' ORDER BY position', kept, names, names, part);
            EXECUTE format('DROP TABLE {schema}.%I', part);
        END IF;
    END LOOP;
    PERFORM {schema}.copy_event_rights('{schema}.event'::regclass,
                                       format('{schema}.%I', kept)::regclass);
    ALTER TABLE {schema}.event RENAME TO event_before;
    EXECUTE format('ALTER TABLE {schema}.%I RENAME TO event', kept);
    EXECUTE format('ALTER TABLE {schema}.event RENAME CONSTRAINT %I TO pk_event', 'pk_' || kept);
    EXECUTE format('ALTER TABLE {schema}.event RENAME CONSTRAINT %I'
        ' TO uq_event_stream_id_version', 'uq_' || kept || '_stream_id_version');
    FOR view IN SELECT key AS name, value AS query FROM jsonb_each_text(views) LOOP
        EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', view.name, view.query);
    END LOOP;
    DROP TABLE {schema}.event_before;
END $$;

REVOKE ALL ON FUNCTION {schema}.event_views(), {schema}.copy_event_rights(regclass, regclass),
    {schema}.withdraw_event_rights(regclass),
    {schema}.add_event_partition(text, bigint, bigint), {schema}.partition_events(bigint, bigint),
    {schema}.extend_event_partitions(integer), {schema}.drop_empty_event_partitions(),
    {schema}.unpartition_events() FROM PUBLIC;
"""

DROP = """
SELECT {schema}.unpartition_events();
DROP FUNCTION {schema}.unpartition_events();
DROP FUNCTION {schema}.drop_empty_event_partitions();
DROP FUNCTION {schema}.extend_event_partitions(integer);
DROP FUNCTION {schema}.partition_events(bigint, bigint);
DROP FUNCTION {schema}.add_event_partition(text, bigint, bigint);
DROP FUNCTION {schema}.withdraw_event_rights(regclass);
DROP FUNCTION {schema}.copy_event_rights(regclass, regclass);
DROP FUNCTION {schema}.event_views();
DROP FUNCTION {schema}.event_partition_list();
"""
