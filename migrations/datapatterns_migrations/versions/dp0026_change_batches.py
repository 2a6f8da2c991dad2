"""Log many changes of one statement as one row; show them as rows, under the log's name.

Revision ID: dp0026
Revises: dp0025
"""

from datapatterns_migrations.placement import run

revision = "dp0026"
down_revision = "dp0025"
branch_labels = None
depends_on = None

# The body that capture writes by now for a trigger function that logged each change as a row; NULL
# if that is no function of ours as we know it. Of UPDATE it keeps what compares the rows.
BODY = r"""
CREATE FUNCTION {schema}.dp0026_body(
    body text, log_name text, columns name[], can_be_batched boolean, long_values text,
    is_partitioned boolean)
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    log text := '"{schema}"."' || log_name || '"';
    rows text := replace(log, '"change_log_', '"change_rows_');
    batches text := replace(log, '"change_log_', '"change_batches_');
    listed text;
    numbered text;
    arrays text;
    known text;
    known_end text := E'\n    WHEN ''TRUNCATE'' THEN\n        INSERT INTO ' || log;
    made_end text := CASE WHEN is_partitioned
        THEN E' (change_sign, change_partition)\n        VALUES (0, nullif("{schema}".'
             || '"partition_bounds"(TG_RELID), ''[]''))'
        ELSE ' (change_sign) VALUES (0)' END
        || E';\n    END CASE;\n    RETURN NULL;\nEND\n';
    place integer;
    head text;
    difference text;
    made text;
    first text;
    rest text;
    many text := 'EXISTS (SELECT FROM new_rows OFFSET 16)';
    event record;
BEGIN
    SELECT coalesce(string_agg(', "' || replace(c, '"', '""') || '"', '' ORDER BY n), ''),
           coalesce(string_agg(', array_agg("' || replace(c, '"', '""') || '")', '' ORDER BY n), '')
      INTO listed, arrays FROM unnest(columns) WITH ORDINALITY AS u (c, n);
    known := E'\n    CASE TG_OP\n    WHEN ''INSERT'' THEN\n        INSERT INTO ' || log
        || ' ("change_xid", "change_sign"' || listed || ') SELECT (SELECT pg_current_xact_id()), 1'
        || listed || E' FROM new_rows;\n    WHEN ''DELETE'' THEN\n        INSERT INTO ' || log
        || ' ("change_xid", "change_sign"' || listed || ') SELECT (SELECT pg_current_xact_id()), -1'
        || listed || E' FROM old_rows;\n    WHEN ''UPDATE'' THEN\n        ';
    place := strpos(body, known);
    difference := substr(body, place + length(known));
    IF place IS NULL OR place = 0 OR strpos(difference, known_end) = 0 THEN
        RETURN NULL;
    END IF;
    head := left(body, place - 1);
    -- What follows says that the table was truncated, or which partition.
    difference := left(difference, strpos(difference, known_end) - 1);

    made := CASE WHEN starts_with(head, E'\n#variable_conflict') OR 'logged' = ANY (columns)
                 THEN E'\n#variable_conflict use_column' ELSE '' END
        || E'\nDECLARE\n    logged bigint;\nBEGIN'
        || substr(head, strpos(head, E'\nBEGIN') + length(E'\nBEGIN')) || E'\n    CASE TG_OP';
    rows := 'INSERT INTO ' || rows || ' ("change_sign"' || listed || ')';
    batches := 'INSERT INTO ' || batches || ' ("change_sign", "image of rows"' || listed || ')'
        || E'\n                SELECT ';
    arrays := ', count(*)' || arrays || E'\n                FROM (SELECT ';
    numbered := CASE WHEN listed = '' THEN '' ELSE substr(listed, 3) || ', ' END
        || '(row_number() OVER () - 1) / 1000 AS "image of batch" FROM ';
    FOR event IN
        SELECT * FROM (VALUES ('INSERT', '1', '"new_rows"'), ('DELETE', '-1', '"old_rows"'))
                      AS e (name, sign, rows)
    LOOP
        first := rows || ' SELECT ' || event.sign || listed || ' FROM ' || event.rows;
        made := made || E'\n    WHEN ''' || event.name || E''' THEN\n        ' || first;
        IF NOT can_be_batched THEN
            made := made || ';';
            CONTINUE;
        END IF;
        rest := batches || event.sign || arrays || numbered || event.rows
            || ' OFFSET 16) AS q GROUP BY "image of batch";';
        IF long_values IS NOT NULL THEN
            many := many || ' AND NOT EXISTS (SELECT FROM "'
                || CASE event.name WHEN 'INSERT' THEN 'old' ELSE 'new' END
                || '_rows" WHERE ' || long_values || ')';
            rest := 'IF EXISTS (SELECT FROM ' || event.rows || ' WHERE ' || long_values
                || E') THEN\n                ' || first
                || E' OFFSET 16;\n            ELSE\n                ' || rest
                || E'\n            END IF;';
        END IF;
        made := made || E' LIMIT 16;\n        GET DIAGNOSTICS logged = ROW_COUNT;'
            || E'\n        IF logged = 16 THEN\n            ' || rest || E'\n        END IF;';
    END LOOP;
    made := made || E'\n    WHEN ''UPDATE'' THEN\n        ';
    IF cardinality(columns) > 0 THEN
        difference := replace(
            substr(difference, strpos(difference, E'\n        SELECT '), length(difference)),
            E'\n        SELECT (SELECT pg_current_xact_id()), ', E'\n        SELECT ');
        difference := left(difference, - length(E';\n'));
        first := rows || difference || ';';
        IF can_be_batched THEN
            first := 'IF ' || many || E' THEN\n            '
                || batches || '"change_sign"' || arrays || '"change_sign", ' || numbered
                || '(' || difference || ') AS u (change_sign' || listed
                || ')) AS q GROUP BY "change_sign", "image of batch";'
                || E'\n        ELSE\n            ' || first || E'\n        END IF;';
        END IF;
        made := made || first;
    ELSE
        made := made || difference;
    END IF;
    RETURN made || replace(known_end, '"change_log_', '"change_rows_') || made_end;
END $$;
"""

TOLD = r"""
CREATE FUNCTION {schema}.dp0026_told(relation oid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('CREATE OR REPLACE VIEW %s%s AS %s', v.oid::regclass,
                  ' WITH (' || array_to_string(v.reloptions, ', ') || ')', pg_get_viewdef(v.oid))
      FROM pg_catalog.pg_class AS v WHERE v.oid = relation
$$;
"""

VIEW = r"""
CREATE FUNCTION {schema}.dp0026_view(log_name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('CREATE VIEW {schema}.%I AS SELECT r.change_xid, r.change_sign%s FROM %s AS r'
                  ' UNION ALL SELECT b.change_xid, b.change_sign%s FROM %s AS b CROSS JOIN LATERAL'
                  ' (SELECT unnest(array_fill(0, ARRAY[b."image of rows"])) AS "image of rows"%s)'
                  ' AS c',
                  log_name,
                  string_agg(format(', r.%I', a.attname), '' ORDER BY a.attnum)
                      FILTER (WHERE a.attname IS NOT NULL),
                  l.rows,
                  string_agg(format(', %s::%s%s AS %I',
                                    coalesce('c.' || quote_ident(p.attname), 'NULL'),
                                    format_type(a.atttypid, a.atttypmod),
                                    CASE WHEN a.attcollation <> t.typcollation
                                         THEN ' COLLATE ' || a.attcollation::regcollation END,
                                    a.attname), '' ORDER BY a.attnum)
                      FILTER (WHERE a.attname IS NOT NULL),
                  l.batches,
                  string_agg(format(', unnest(b.%1$I) AS %1$I', p.attname), '' ORDER BY a.attnum)
                      FILTER (WHERE p.attname IS NOT NULL))
      FROM (SELECT format('{schema}.%I', 'change_rows_' || suffix)::regclass,
                   format('{schema}.%I', 'change_batches_' || suffix)::regclass
              FROM substr(log_name, 12) AS suffix) AS l (rows, batches)
      LEFT JOIN pg_attribute AS a ON a.attrelid = l.rows AND a.attnum > 2 AND NOT a.attisdropped
      LEFT JOIN pg_type AS t ON t.oid = a.atttypid
      LEFT JOIN pg_attribute AS p
        ON p.attrelid = l.batches AND p.attname = a.attname AND NOT p.attisdropped
     GROUP BY l.rows, l.batches
$$;
"""

# What a log was becomes its table of rows, and the view gets its name. What stands upon the log is
# told anew, as it was written, or it would read the rows alone. Writers are kept out from the
# start: one whose function is about to log something would find a view where the table was. Even
# before that the views are told once as they are: who reads one has it locked when he comes for the
# log, and would wait for us while we wait for the view.
UPGRADE = r"""
DO $$
DECLARE
    path text := current_setting('search_path');
    captured record;
    log regclass;
    suffix text;
    owner name;
    held record;
    other text;
    readers text[];
    reader text;
    columns name[];
    arrays text[];
    long_values text;
    unbounded integer;
    can_be_batched boolean;
    made text;
    function record;
BEGIN
    PERFORM set_config('search_path', '', true);  -- so that names are written with their schemas
    FOR reader IN
        SELECT {schema}.dp0026_told(v.oid) FROM pg_class AS v
         WHERE v.relkind = 'v' AND v.oid IN (
               SELECT r.ev_class FROM {schema}.captured_table AS t
                 JOIN pg_depend AS d
                   ON d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
                  AND d.refobjid = to_regclass(format('{schema}.%I', t.log_name))
                 JOIN pg_rewrite AS r ON r.oid = d.objid)
         ORDER BY v.oid
    LOOP
        EXECUTE reader;
    END LOOP;
    FOR captured IN
        SELECT t.log_name, format('%I.%I', t.table_schema, t.table_name) AS source
          FROM {schema}.captured_table AS t ORDER BY t.table_schema, t.table_name
    LOOP
        IF to_regclass(captured.source) IS NOT NULL THEN
            EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', captured.source);
        END IF;
        log := to_regclass(format('{schema}.%I', captured.log_name));
        CONTINUE WHEN log IS NULL;
        suffix := substr(captured.log_name, 12);  -- after 'change_log_'
        owner := (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = log);
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid) INTO other
          FROM pg_depend AS d
          LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
          LEFT JOIN pg_class AS v ON v.oid = r.ev_class
         WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = log AND d.deptype = 'n'
           AND v.relkind IS DISTINCT FROM 'v'
         LIMIT 1;
        IF other IS NOT NULL THEN
            RAISE EXCEPTION '% depends on %', other, log
                USING HINT = 'Drop it, and create it anew after this migration.';
        END IF;
        readers := ARRAY (
            SELECT {schema}.dp0026_told(v.oid)
              FROM pg_class AS v
             WHERE v.oid IN (SELECT r.ev_class FROM pg_depend AS d
                               JOIN pg_rewrite AS r ON r.oid = d.objid
                              WHERE d.classid = 'pg_rewrite'::regclass
                                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = log));

        SELECT array_agg(a.attname ORDER BY a.attnum), array_agg(l.arrays ORDER BY a.attnum),
               string_agg(format('octet_length("%s") > 1000', replace(a.attname, '"', '""')),
                          ' OR ' ORDER BY a.attnum) FILTER (WHERE l.may_be_long),
               count(*) FILTER (WHERE l.is_unbounded)
          INTO columns, arrays, long_values, unbounded
          FROM (SELECT l.attname, t.oid IN (17, 25, 1042, 1043) AS may_be_long,
                       CASE WHEN t.typlen > 0 OR t.oid IN (17, 25, 1042, 1043, 1700)
                            THEN format_type(nullif(t.typarray, 0), -1)
                                 || CASE WHEN l.attcollation <> t.typcollation
                                         THEN ' COLLATE ' || l.attcollation::regcollation::text
                                         ELSE '' END END AS arrays,
                       t.oid = 1700 AND l.atttypmod = -1 AS is_unbounded
                  FROM pg_attribute AS l JOIN pg_type AS t ON t.oid = l.atttypid
                 WHERE l.attrelid = log AND l.attnum > 2 AND NOT l.attisdropped
                   AND l.attname <> 'change_partition') AS l
          JOIN pg_attribute AS a
            ON a.attrelid = to_regclass(captured.source) AND a.attname = l.attname
           AND a.attnum > 0 AND a.attgenerated <> 'v';
        columns := coalesce(columns, '{}');
        arrays := coalesce(arrays, '{}');
        can_be_batched := cardinality(columns) <= 100 AND unbounded <= 12
            AND array_position(arrays, NULL) IS NULL;

        EXECUTE format('ALTER TABLE %s RENAME TO %I', log, 'change_rows_' || suffix);
        EXECUTE format($sql$
            COMMENT ON TABLE {schema}.%1$I IS 'Changes, each a row; read the view of the log';
            CREATE TABLE {schema}.%2$I (
                change_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
                change_sign smallint NOT NULL,
                "image of rows" integer NOT NULL%4$s
            ) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
            CREATE INDEX ON {schema}.%2$I (change_xid);
            ALTER TABLE {schema}.%2$I REPLICA IDENTITY FULL;
            %5$s;
            ALTER TABLE {schema}.%2$I OWNER TO %3$I;
            COMMENT ON TABLE {schema}.%2$I IS
                'Many changes in a row, as arrays; read the view of the log';
            ANALYZE {schema}.%2$I$sql$,
            'change_rows_' || suffix, 'change_batches_' || suffix, owner,
            CASE WHEN can_be_batched THEN
                (SELECT string_agg(format(', %I ', c) || a, '' ORDER BY n)
                   FROM unnest(columns, arrays) WITH ORDINALITY AS u (c, a, n)) END,
            (SELECT format('ALTER TABLE {schema}.%I %s', 'change_batches_' || suffix,
                           string_agg(format('ALTER COLUMN %I SET STATISTICS 0', c), ', '))
               FROM unnest(columns) AS u (c) WHERE can_be_batched HAVING count(*) > 0));
        EXECUTE {schema}.dp0026_view(captured.log_name);
        EXECUTE format('ALTER VIEW {schema}.%I OWNER TO %I', captured.log_name, owner);
        EXECUTE format('COMMENT ON VIEW {schema}.%I IS %L', captured.log_name,
                       'Changed rows of ' || (SELECT t.table_schema || '.' || t.table_name
                                                FROM {schema}.captured_table AS t
                                               WHERE t.log_name = captured.log_name)
                       || '; 1 added, -1 removed, 0 truncated');
        FOR held IN
            SELECT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END AS role,
                   g.privilege_type AS may, g.listed,
                   CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS also
              FROM (SELECT a.grantee, a.is_grantable, a.privilege_type, '' AS listed
                      FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE c.oid = log
                    UNION ALL
                    SELECT a.grantee, a.is_grantable, a.privilege_type, format(' (%I)', t.attname)
                      FROM pg_attribute AS t, aclexplode(t.attacl) AS a
                     WHERE t.attrelid = log AND NOT t.attisdropped) AS g
             WHERE g.grantee::regrole::name <> owner
        LOOP
            IF held.may = 'SELECT' THEN
                EXECUTE format('GRANT SELECT%s ON {schema}.%I TO %s%s',
                               held.listed, captured.log_name, held.role, held.also);
            END IF;
            IF held.listed = '' THEN  -- such as DELETE for who collects
                EXECUTE format('GRANT %s ON {schema}.%I TO %s%s',
                               held.may, 'change_batches_' || suffix, held.role, held.also);
            END IF;
        END LOOP;
        FOREACH reader IN ARRAY readers LOOP
            EXECUTE reader;
        END LOOP;

        -- A body that we do not know goes on as it is; who captures the table next replaces it.
        FOR function IN
            SELECT p.oid, p.prosrc AS body, p.proname = 'capture_' || suffix AS logs
              FROM pg_proc AS p
             WHERE p.pronamespace = '{schema}'::regnamespace
               AND p.proname IN ('capture_' || suffix, 'capture_move_' || suffix)
        LOOP
            made := CASE WHEN function.logs THEN
                {schema}.dp0026_body(
                    function.body, captured.log_name, columns, can_be_batched, long_values,
                    (SELECT c.relkind = 'p' FROM pg_class AS c
                      WHERE c.oid = to_regclass(captured.source))) END;
            made := coalesce(made, replace(function.body, '"' || captured.log_name || '"',
                                           '"change_rows_' || suffix || '"'));
            EXECUTE replace(pg_get_functiondef(function.oid), function.body, made);
        END LOOP;
    END LOOP;
    PERFORM set_config('search_path', path, true);
END $$;
DROP FUNCTION {schema}.dp0026_body(text, text, name[], boolean, text, boolean),
              {schema}.dp0026_view(text), {schema}.dp0026_told(oid);
"""


def upgrade() -> None:
    run(BODY)
    run(VIEW)
    run(TOLD)
    run(UPGRADE)


def downgrade() -> None:
    # Functions of before log no batches, and views of before read none.
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.captured_table) THEN
        RAISE EXCEPTION 'tables are still captured; release them first, with ChangeLog.release()';
    END IF;
END $$;
""")
