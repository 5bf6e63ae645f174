-- What anybody may do to a table, seen by whoever watches it: two commits.
INSERT INTO actions (action, path) VALUES ('deploy', '/srv/app'), ('restart', '/srv/app');

BEGIN;
UPDATE actions SET status = true WHERE action = 'deploy';
INSERT INTO actions (action, path) VALUES ('verify', '/srv/app');
COMMIT;
