-- The collectors that an agent reports with its polls: `host;every,syslog`. Absent for agents of earlier releases.

ALTER TABLE agents ADD COLUMN collectors TEXT;
