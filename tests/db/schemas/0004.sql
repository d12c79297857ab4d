BEGIN TRANSACTION;
CREATE TABLE attempt (
	job_id INTEGER NOT NULL, 
	token INTEGER NOT NULL, 
	owner TEXT NOT NULL, 
	actor TEXT, 
	node TEXT, 
	folder TEXT, 
	log TEXT, 
	claimed_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	lease_until DOUBLE, 
	progress JSON, 
	ended_at DOUBLE, 
	outcome TEXT, 
	failure TEXT, 
	reason TEXT, 
	CONSTRAINT attempt_pk PRIMARY KEY (job_id, token), 
	CONSTRAINT attempt_job_id_fk FOREIGN KEY(job_id) REFERENCES job (id), 
	CONSTRAINT attempt_outcome_ck CHECK (outcome IN ('done', 'failed', 'expired', 'released', 'cancelled')), 
	CONSTRAINT attempt_ended_ck CHECK ((outcome IS NULL) = (ended_at IS NULL) AND (outcome IS NULL) = (lease_until IS NOT NULL))
);
INSERT INTO "attempt" VALUES(2,1,'alice',NULL,NULL,NULL,NULL,1.7955319942839951515e+09,NULL,NULL,NULL,1.79553199428998970987e+09,'done',NULL,NULL);
INSERT INTO "attempt" VALUES(3,1,'alice',NULL,NULL,NULL,NULL,1.79553199430399084085e+09,NULL,NULL,NULL,1.7955319943119974136e+09,'failed','INFRA','it broke');
INSERT INTO "attempt" VALUES(3,2,'alice',NULL,NULL,NULL,NULL,1.79553199431698608397e+09,NULL,NULL,NULL,1.79553199433601641653e+09,'expired','NODE','the lease of alice ran out');
INSERT INTO "attempt" VALUES(3,3,'alice',NULL,NULL,NULL,NULL,1.79553199434201121329e+09,NULL,NULL,NULL,1.79553199434800601005e+09,'released',NULL,'drain');
INSERT INTO "attempt" VALUES(3,4,'alice',NULL,NULL,NULL,NULL,1.7955319943690075874e+09,NULL,NULL,NULL,1.79553199437600827215e+09,'done',NULL,NULL);
INSERT INTO "attempt" VALUES(4,1,'alice',NULL,NULL,NULL,NULL,1.79553199438498020169e+09,NULL,NULL,NULL,1.79553199439198064805e+09,'done',NULL,NULL);
INSERT INTO "attempt" VALUES(5,1,'alice','xsweep-1','n','store/s2','store/s2.log',1.79553199439998722075e+09,1.79553199440799355506e+09,1.7955320543999872207e+09,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "attempt" VALUES(10,1,'alice',NULL,NULL,NULL,NULL,1.79553199441201686856e+09,NULL,NULL,NULL,1.7955319944199829101e+09,'failed','CONFIG','no such backbone');
INSERT INTO "attempt" VALUES(1,1,'alice',NULL,NULL,NULL,NULL,1.79553199442798948285e+09,NULL,NULL,NULL,1.79553199443201279639e+09,'done',NULL,NULL);
INSERT INTO "attempt" VALUES(6,1,'alice',NULL,NULL,NULL,NULL,1.79553199443599581716e+09,NULL,NULL,NULL,1.79553199444098472593e+09,'done',NULL,NULL);
INSERT INTO "attempt" VALUES(7,1,'alice',NULL,NULL,NULL,NULL,1.7955319944460139275e+09,NULL,NULL,NULL,1.79553199445498585704e+09,'done',NULL,NULL);
CREATE TABLE controller (
	owner TEXT NOT NULL, 
	host TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	dashboard_url TEXT, 
	started_at DOUBLE NOT NULL, 
	heartbeat_at DOUBLE NOT NULL, 
	CONSTRAINT controller_pk PRIMARY KEY (owner)
);
INSERT INTO "controller" VALUES('alice','h',1,NULL,1.79553199446098065371e+09,1.79553199446098065371e+09);
CREATE TABLE definition (
	job_id INTEGER NOT NULL, 
	spec JSON NOT NULL, 
	resources JSON NOT NULL, 
	cost_s DOUBLE NOT NULL, 
	CONSTRAINT definition_pk PRIMARY KEY (job_id), 
	CONSTRAINT definition_job_id_fk FOREIGN KEY(job_id) REFERENCES job (id)
);
INSERT INTO "definition" VALUES(1,'{"name": "first"}','{}',1.0);
INSERT INTO "definition" VALUES(2,'{"name": "tokens"}','{}',1.0);
INSERT INTO "definition" VALUES(3,'{"name": "candidates"}','{}',1.0);
INSERT INTO "definition" VALUES(4,'{"name": "train s1"}','{}',1.0);
INSERT INTO "definition" VALUES(5,'{"name": "train s2"}','{}',1.0);
INSERT INTO "definition" VALUES(6,'{"name": "evaluate s1 dl19"}','{}',1.0);
INSERT INTO "definition" VALUES(7,'{"name": "evaluate s1 dl20"}','{}',1.0);
INSERT INTO "definition" VALUES(8,'{"name": "evaluate s2 dl19"}','{}',1.0);
INSERT INTO "definition" VALUES(9,'{"name": "evaluate s2 dl20"}','{}',1.0);
INSERT INTO "definition" VALUES(10,'{"name": "poison"}','{}',1.0);
INSERT INTO "definition" VALUES(11,'{"name": "dropped"}','{}',1.0);
INSERT INTO "definition" VALUES(12,'{"name": "after poison"}','{}',1.0);
CREATE TABLE edge (
	child_id INTEGER NOT NULL, 
	role TEXT NOT NULL, 
	parent_id INTEGER NOT NULL, 
	CONSTRAINT edge_pk PRIMARY KEY (child_id, role), 
	CONSTRAINT edge_child_id_fk FOREIGN KEY(child_id) REFERENCES job (id), 
	CONSTRAINT edge_parent_id_fk FOREIGN KEY(parent_id) REFERENCES job (id)
);
INSERT INTO "edge" VALUES(4,'tokens',2);
INSERT INTO "edge" VALUES(5,'tokens',2);
INSERT INTO "edge" VALUES(6,'train s1',4);
INSERT INTO "edge" VALUES(6,'candidates',3);
INSERT INTO "edge" VALUES(7,'train s1',4);
INSERT INTO "edge" VALUES(7,'candidates',3);
INSERT INTO "edge" VALUES(8,'train s2',5);
INSERT INTO "edge" VALUES(8,'candidates',3);
INSERT INTO "edge" VALUES(9,'train s2',5);
INSERT INTO "edge" VALUES(9,'candidates',3);
INSERT INTO "edge" VALUES(12,'poison',10);
CREATE TABLE event (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at DOUBLE NOT NULL, 
	kind TEXT NOT NULL, 
	sweep_id INTEGER, 
	job_id INTEGER, 
	token INTEGER, 
	owner TEXT, 
	detail JSON NOT NULL, 
	CONSTRAINT event_sweep_id_fk FOREIGN KEY(sweep_id) REFERENCES sweep (id), 
	CONSTRAINT event_job_id_fk FOREIGN KEY(job_id) REFERENCES job (id)
);
INSERT INTO "event" VALUES(1,1.79553199426098155973e+09,'submitted',1,NULL,NULL,NULL,'{"new": 9, "added": 9, "renamed": 0}');
INSERT INTO "event" VALUES(2,1.79553199427200555803e+09,'submitted',2,NULL,NULL,NULL,'{"new": 3, "added": 8, "renamed": 0}');
INSERT INTO "event" VALUES(3,1.7955319942839951515e+09,'claimed',NULL,2,1,'alice','{}');
INSERT INTO "event" VALUES(4,1.79553199429200148582e+09,'accepted',NULL,2,1,'alice','{"manifest_sha256": "c51e455b41df6c017327e16001dd064b8b6733faeaa69b23d9bd79c8079237d5", "scores_sha256": null}');
INSERT INTO "event" VALUES(5,1.79553199429900193218e+09,'ready',NULL,4,NULL,NULL,'{}');
INSERT INTO "event" VALUES(6,1.79553199429900193218e+09,'ready',NULL,5,NULL,NULL,'{}');
INSERT INTO "event" VALUES(7,1.79553199430399084085e+09,'claimed',NULL,3,1,'alice','{}');
INSERT INTO "event" VALUES(8,1.79553199431400895124e+09,'failed',NULL,3,1,'alice','{"failure": "INFRA", "count": 1, "allowed": 5, "next": "ready", "reason": "it broke"}');
INSERT INTO "event" VALUES(9,1.79553199431698608397e+09,'claimed',NULL,3,2,'alice','{}');
INSERT INTO "event" VALUES(10,1.79553199433698201176e+09,'expired',NULL,3,2,'alice','{"failure": "NODE", "count": 1, "allowed": 8, "next": "ready", "reason": "the lease of alice ran out"}');
INSERT INTO "event" VALUES(11,1.79553199434201121329e+09,'claimed',NULL,3,3,'alice','{}');
INSERT INTO "event" VALUES(12,1.79553199434800601005e+09,'released',NULL,3,3,'alice','{"reason": "drain"}');
INSERT INTO "event" VALUES(13,1.79553199435898971558e+09,'cancelled',NULL,11,NULL,NULL,'{}');
INSERT INTO "event" VALUES(14,1.7955319943690075874e+09,'claimed',NULL,3,4,'alice','{}');
INSERT INTO "event" VALUES(15,1.79553199437600827215e+09,'accepted',NULL,3,4,'alice','{"manifest_sha256": "ba159dbf9d2f740f56bc2ea7245187ee726da4263440b055ceb89485f4dbcf38", "scores_sha256": null}');
INSERT INTO "event" VALUES(16,1.79553199438498020169e+09,'claimed',NULL,4,1,'alice','{}');
INSERT INTO "event" VALUES(17,1.79553199439198064805e+09,'accepted',NULL,4,1,'alice','{"manifest_sha256": "648f6e0f4ca345c4f8e869cac5e52e76431ae11041f02e448db5a51ec41f1c63", "scores_sha256": null}');
INSERT INTO "event" VALUES(18,1.795531994392986536e+09,'ready',NULL,6,NULL,NULL,'{}');
INSERT INTO "event" VALUES(19,1.795531994392986536e+09,'ready',NULL,7,NULL,NULL,'{}');
INSERT INTO "event" VALUES(20,1.79553199439998722075e+09,'claimed',NULL,5,1,'alice','{}');
INSERT INTO "event" VALUES(21,1.79553199440799355506e+09,'started',NULL,5,1,'alice','{"actor": "xsweep-1", "node": "n", "folder": "store/s2", "log": "store/s2.log"}');
INSERT INTO "event" VALUES(22,1.79553199441201686856e+09,'claimed',NULL,10,1,'alice','{}');
INSERT INTO "event" VALUES(23,1.79553199442300057413e+09,'skipped',NULL,12,NULL,NULL,'{"reason": "poison failed: CONFIG"}');
INSERT INTO "event" VALUES(24,1.79553199442400646208e+09,'failed',NULL,10,1,'alice','{"failure": "CONFIG", "count": 1, "allowed": 0, "next": "failed", "reason": "no such backbone"}');
INSERT INTO "event" VALUES(25,1.79553199442798948285e+09,'claimed',NULL,1,1,'alice','{}');
INSERT INTO "event" VALUES(26,1.79553199443201279639e+09,'accepted',NULL,1,1,'alice','{"manifest_sha256": "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e", "scores_sha256": null}');
INSERT INTO "event" VALUES(27,1.79553199443599581716e+09,'claimed',NULL,6,1,'alice','{}');
INSERT INTO "event" VALUES(28,1.79553199444400215147e+09,'accepted',NULL,6,1,'alice','{"manifest_sha256": "745b11a3f7d128c5c2b904f902a1e57fe8d81a4a994f314ebcc762c55cf5be51", "scores_sha256": "113e0228c1ecc75e723d5fcd4b4cac7ffb61b2878ed74b2d45fd33505642d4ea"}');
INSERT INTO "event" VALUES(29,1.79553199445100283623e+09,'claimed',NULL,7,1,'alice','{}');
INSERT INTO "event" VALUES(30,1.79553199445599174499e+09,'accepted',NULL,7,1,'alice','{"manifest_sha256": "deb914e30d4aa02d7f1d413b88d68122cf9bfd79ce867cc40873f6a0932c27cb", "scores_sha256": "113e0228c1ecc75e723d5fcd4b4cac7ffb61b2878ed74b2d45fd33505642d4ea"}');
INSERT INTO "event" VALUES(31,1.79553199448001098636e+09,'paused',2,NULL,NULL,NULL,'{"before": "active"}');
CREATE TABLE job (
	id INTEGER NOT NULL, 
	identity TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	state TEXT NOT NULL, 
	missing_parents INTEGER NOT NULL, 
	priority INTEGER NOT NULL, 
	critical_s DOUBLE NOT NULL, 
	token INTEGER NOT NULL, 
	forgiven_token INTEGER NOT NULL, 
	retry_at DOUBLE, 
	failure TEXT, 
	reason TEXT, 
	created_at DOUBLE NOT NULL, 
	ended_at DOUBLE, 
	CONSTRAINT job_pk PRIMARY KEY (id), 
	CONSTRAINT job_identity_uq UNIQUE (identity), 
	CONSTRAINT job_state_ck CHECK (state IN ('waiting', 'ready', 'running', 'done', 'failed', 'skipped', 'cancelled')), 
	CONSTRAINT job_parents_ck CHECK (missing_parents >= 0 AND (state <> 'waiting' OR missing_parents > 0) AND (state NOT IN ('ready', 'running', 'done') OR missing_parents = 0)), 
	CONSTRAINT job_failure_ck CHECK ((state = 'failed') = (failure IS NOT NULL)), 
	CONSTRAINT job_identity_ck CHECK (length(identity) = 64)
);
INSERT INTO "job" VALUES(1,'a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e','train','first','done',0,0,1.0,1,0,NULL,NULL,NULL,1.79553199425301551815e+09,1.79553199443201279639e+09);
INSERT INTO "job" VALUES(2,'c51e455b41df6c017327e16001dd064b8b6733faeaa69b23d9bd79c8079237d5','prepare','tokens','done',0,0,3.0,1,0,NULL,NULL,NULL,1.79553199425301551815e+09,1.79553199429200148582e+09);
INSERT INTO "job" VALUES(3,'ba159dbf9d2f740f56bc2ea7245187ee726da4263440b055ceb89485f4dbcf38','prepare','candidates','done',0,0,2.0,4,0,NULL,NULL,NULL,1.79553199425301551815e+09,1.79553199437600827215e+09);
INSERT INTO "job" VALUES(4,'648f6e0f4ca345c4f8e869cac5e52e76431ae11041f02e448db5a51ec41f1c63','train','train s1','done',0,0,2.0,1,0,NULL,NULL,NULL,1.79553199425301551815e+09,1.79553199439198064805e+09);
INSERT INTO "job" VALUES(5,'55800cc29513834d2e99ee314f6e0cf51bf0f134f10663b40677b76cb6d3f9ed','train','train s2','running',0,0,2.0,1,0,NULL,NULL,NULL,1.79553199425301551815e+09,NULL);
INSERT INTO "job" VALUES(6,'745b11a3f7d128c5c2b904f902a1e57fe8d81a4a994f314ebcc762c55cf5be51','evaluate','evaluate s1 dl19','done',0,0,1.0,1,0,NULL,NULL,NULL,1.79553199425301551815e+09,1.79553199444400215147e+09);
INSERT INTO "job" VALUES(7,'deb914e30d4aa02d7f1d413b88d68122cf9bfd79ce867cc40873f6a0932c27cb','evaluate','evaluate s1 dl20','done',0,0,1.0,1,0,NULL,NULL,NULL,1.79553199425301551815e+09,1.79553199445599174499e+09);
INSERT INTO "job" VALUES(8,'5a560913897e93083f6fb626e304f34e511432cb312971ef3f82eaff86d8d41d','evaluate','evaluate s2 dl19','waiting',1,0,1.0,0,0,NULL,NULL,NULL,1.79553199425301551815e+09,NULL);
INSERT INTO "job" VALUES(9,'b02384dfb8fb2643e10261b158acefe78896c6149d971e4be408c8026594742b','evaluate','evaluate s2 dl20','waiting',1,0,1.0,0,0,NULL,NULL,NULL,1.79553199425301551815e+09,NULL);
INSERT INTO "job" VALUES(10,'5743abddddfa08c1e3a99fdebc2e8f3f1108fa12dcd2a8f58a42f141418c22ec','train','poison','failed',0,0,2.0,1,0,NULL,'CONFIG','no such backbone',1.79553199427099967008e+09,1.79553199442098879818e+09);
INSERT INTO "job" VALUES(11,'e7cd9c3ab5da1895f52abfece688c0f136a26c348f0619bdf724a9e1667b747f','train','dropped','cancelled',0,0,1.0,0,0,NULL,NULL,NULL,1.79553199427099967008e+09,1.79553199435798382758e+09);
INSERT INTO "job" VALUES(12,'0873c33889c5c70f9a648491afea05575b2ddc02c7e6cf5b4ca4a6c5a17c41e8','train','after poison','skipped',1,0,1.0,0,0,NULL,NULL,'poison failed: CONFIG',1.79553199427099967008e+09,1.79553199442300057413e+09);
CREATE TABLE query_set (
	id INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	name TEXT NOT NULL, 
	query_ids JSON NOT NULL, 
	CONSTRAINT query_set_pk PRIMARY KEY (id), 
	CONSTRAINT query_set_digest_uq UNIQUE (digest)
);
INSERT INTO "query_set" VALUES(1,'1068465bd9ff82ce5e95b7e3b0131909e790b9398cf1a4d15daee314f342866e','dl19','["q1", "q2"]');
CREATE TABLE result (
	job_id INTEGER NOT NULL, 
	token INTEGER NOT NULL, 
	folder TEXT NOT NULL, 
	manifest_sha256 TEXT NOT NULL, 
	summary JSON NOT NULL, 
	provenance JSON NOT NULL, 
	accepted_at DOUBLE NOT NULL, 
	CONSTRAINT result_pk PRIMARY KEY (job_id), 
	CONSTRAINT result_job_id_token_fk FOREIGN KEY(job_id, token) REFERENCES attempt (job_id, token)
);
INSERT INTO "result" VALUES(1,1,'store/first/1','a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e','{"steps": 10}','{"commit": "c0ffee"}',1.79553199443201279639e+09);
INSERT INTO "result" VALUES(2,1,'store/tokens/1','c51e455b41df6c017327e16001dd064b8b6733faeaa69b23d9bd79c8079237d5','{"steps": 10}','{"commit": "c0ffee"}',1.79553199429099559786e+09);
INSERT INTO "result" VALUES(3,4,'store/candidates/4','ba159dbf9d2f740f56bc2ea7245187ee726da4263440b055ceb89485f4dbcf38','{"steps": 10}','{"commit": "c0ffee"}',1.79553199437600827215e+09);
INSERT INTO "result" VALUES(4,1,'store/train s1/1','648f6e0f4ca345c4f8e869cac5e52e76431ae11041f02e448db5a51ec41f1c63','{"steps": 10}','{"commit": "c0ffee"}',1.79553199439198064805e+09);
INSERT INTO "result" VALUES(6,1,'store/evaluate s1 dl19/1','745b11a3f7d128c5c2b904f902a1e57fe8d81a4a994f314ebcc762c55cf5be51','{"steps": 10}','{"commit": "c0ffee"}',1.79553199444098472593e+09);
INSERT INTO "result" VALUES(7,1,'store/evaluate s1 dl20/1','deb914e30d4aa02d7f1d413b88d68122cf9bfd79ce867cc40873f6a0932c27cb','{"steps": 10}','{"commit": "c0ffee"}',1.79553199445498585704e+09);
CREATE TABLE score (
	job_id INTEGER NOT NULL, 
	measure TEXT NOT NULL, 
	query_set_id INTEGER NOT NULL, 
	packed BLOB NOT NULL, 
	mean DOUBLE NOT NULL, 
	CONSTRAINT score_pk PRIMARY KEY (job_id, measure), 
	CONSTRAINT score_job_id_fk FOREIGN KEY(job_id) REFERENCES result (job_id), 
	CONSTRAINT score_query_set_id_fk FOREIGN KEY(query_set_id) REFERENCES query_set (id)
);
INSERT INTO "score" VALUES(6,'AP',1,X'000000000000E03F555555555555D53F',4.16666666666666629659e-01);
INSERT INTO "score" VALUES(6,'nDCG@10',1,X'000000000000D03F000000000000F03F',0.625);
INSERT INTO "score" VALUES(7,'AP',1,X'000000000000E03F555555555555D53F',4.16666666666666629659e-01);
INSERT INTO "score" VALUES(7,'nDCG@10',1,X'000000000000D03F000000000000F03F',0.625);
CREATE TABLE sweep (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	grid TEXT NOT NULL, 
	state TEXT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	CONSTRAINT sweep_pk PRIMARY KEY (id), 
	CONSTRAINT sweep_name_uq UNIQUE (name), 
	CONSTRAINT sweep_state_ck CHECK (state IN ('active', 'paused', 'cancelled'))
);
INSERT INTO "sweep" VALUES(1,'study','name: study','active',1.79553199426001596451e+09);
INSERT INTO "sweep" VALUES(2,'shared','name: study','paused',1.79553199427200555803e+09);
CREATE TABLE sweep_job (
	sweep_id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	labels JSON NOT NULL, 
	CONSTRAINT sweep_job_pk PRIMARY KEY (sweep_id, job_id), 
	CONSTRAINT sweep_job_sweep_id_fk FOREIGN KEY(sweep_id) REFERENCES sweep (id), 
	CONSTRAINT sweep_job_job_id_fk FOREIGN KEY(job_id) REFERENCES job (id)
);
INSERT INTO "sweep_job" VALUES(1,1,'{}');
INSERT INTO "sweep_job" VALUES(1,2,'{}');
INSERT INTO "sweep_job" VALUES(1,3,'{}');
INSERT INTO "sweep_job" VALUES(1,4,'{}');
INSERT INTO "sweep_job" VALUES(1,5,'{}');
INSERT INTO "sweep_job" VALUES(1,6,'{"seed": 1, "collection": "dl19"}');
INSERT INTO "sweep_job" VALUES(1,7,'{"seed": 1, "collection": "dl20"}');
INSERT INTO "sweep_job" VALUES(1,8,'{"seed": 2, "collection": "dl19"}');
INSERT INTO "sweep_job" VALUES(1,9,'{"seed": 2, "collection": "dl20"}');
INSERT INTO "sweep_job" VALUES(2,2,'{}');
INSERT INTO "sweep_job" VALUES(2,3,'{}');
INSERT INTO "sweep_job" VALUES(2,10,'{}');
INSERT INTO "sweep_job" VALUES(2,11,'{}');
INSERT INTO "sweep_job" VALUES(2,4,'{}');
INSERT INTO "sweep_job" VALUES(2,12,'{}');
INSERT INTO "sweep_job" VALUES(2,6,'{"seed": 1, "collection": "dl19"}');
INSERT INTO "sweep_job" VALUES(2,7,'{"seed": 1, "collection": "dl20"}');
CREATE TABLE tally (
	id INTEGER NOT NULL, 
	sweep_id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	state TEXT NOT NULL, 
	jobs INTEGER NOT NULL, 
	cost_s DOUBLE NOT NULL, 
	CONSTRAINT tally_pk PRIMARY KEY (id)
);
INSERT INTO "tally" VALUES(1,1,'evaluate','done',2,2.0);
INSERT INTO "tally" VALUES(2,1,'evaluate','waiting',2,2.0);
INSERT INTO "tally" VALUES(3,1,'prepare','done',2,2.0);
INSERT INTO "tally" VALUES(4,1,'train','done',2,2.0);
INSERT INTO "tally" VALUES(5,1,'train','running',1,1.0);
INSERT INTO "tally" VALUES(6,2,'evaluate','done',2,2.0);
INSERT INTO "tally" VALUES(7,2,'prepare','done',2,2.0);
INSERT INTO "tally" VALUES(8,2,'train','cancelled',1,1.0);
INSERT INTO "tally" VALUES(9,2,'train','done',1,1.0);
INSERT INTO "tally" VALUES(10,2,'train','failed',1,1.0);
INSERT INTO "tally" VALUES(11,2,'train','skipped',1,1.0);
CREATE TABLE xsweep_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT xsweep_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "xsweep_schema" VALUES('0004');
CREATE INDEX job_claim_ix ON job (priority DESC, critical_s DESC, id) WHERE state = 'ready';
CREATE INDEX job_failed_ix ON job (ended_at) WHERE state = 'failed';
CREATE INDEX job_name_ix ON job (name);
CREATE INDEX edge_parent_ix ON edge (parent_id);
CREATE INDEX sweep_job_job_ix ON sweep_job (job_id);
CREATE UNIQUE INDEX attempt_live_ix ON attempt (job_id) WHERE outcome IS NULL;
CREATE INDEX attempt_done_ix ON attempt (ended_at) WHERE outcome = 'done';
CREATE INDEX event_job_ix ON event (job_id);
CREATE TRIGGER definition_no_update BEFORE UPDATE ON definition BEGIN SELECT RAISE(ABORT, 'definition is append-only'); END;
CREATE TRIGGER definition_no_delete BEFORE DELETE ON definition BEGIN SELECT RAISE(ABORT, 'definition is append-only'); END;
CREATE TRIGGER event_no_update BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;
CREATE TRIGGER query_set_no_update BEFORE UPDATE ON query_set BEGIN SELECT RAISE(ABORT, 'query_set is append-only'); END;
CREATE TRIGGER query_set_no_delete BEFORE DELETE ON query_set BEGIN SELECT RAISE(ABORT, 'query_set is append-only'); END;
CREATE TRIGGER result_no_update BEFORE UPDATE ON result BEGIN SELECT RAISE(ABORT, 'result is append-only'); END;
CREATE TRIGGER score_no_update BEFORE UPDATE ON score BEGIN SELECT RAISE(ABORT, 'score is append-only'); END;
CREATE TRIGGER job_counted AFTER UPDATE OF state ON job WHEN OLD.state <> NEW.state BEGIN INSERT INTO tally (sweep_id, kind, state, jobs, cost_s) SELECT sweep_job.sweep_id, NEW.kind, change.state, change.jobs, change.jobs * definition.cost_s FROM sweep_job JOIN definition ON definition.job_id = sweep_job.job_id CROSS JOIN (SELECT OLD.state AS state, -1 AS jobs UNION ALL SELECT NEW.state, 1) AS change WHERE sweep_job.job_id = NEW.id; END;
CREATE TRIGGER sweep_job_counted AFTER INSERT ON sweep_job BEGIN INSERT INTO tally (sweep_id, kind, state, jobs, cost_s) SELECT NEW.sweep_id, job.kind, job.state, 1, definition.cost_s FROM job JOIN definition ON definition.job_id = job.id WHERE job.id = NEW.job_id; END;
CREATE TRIGGER job_moves BEFORE UPDATE ON job WHEN (OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ('ready>running', 'running>done', 'waiting>ready', 'running>ready', 'running>failed', 'waiting>skipped', 'waiting>cancelled', 'ready>cancelled', 'running>cancelled', 'failed>waiting', 'failed>ready', 'skipped>waiting', 'skipped>ready', 'cancelled>waiting', 'cancelled>ready', 'ready>skipped', 'done>ready', 'ready>waiting', 'running>waiting')) OR NEW.token < OLD.token OR NEW.identity <> OLD.identity OR NEW.kind <> OLD.kind OR (NEW.state = 'done' AND NOT EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id)) OR (OLD.state = 'done' AND NEW.state <> 'done' AND EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id)) OR (NEW.state <> 'running' AND EXISTS (SELECT 1 FROM attempt WHERE attempt.job_id = NEW.id AND attempt.outcome IS NULL)) BEGIN SELECT RAISE(ABORT, 'illegal move of a job'); END;
CREATE TRIGGER result_no_delete BEFORE DELETE ON result WHEN NOT EXISTS (SELECT 1 FROM event JOIN result ON result.job_id = event.job_id AND result.token = event.token WHERE event.kind = 'redone' AND event.job_id = OLD.job_id) BEGIN SELECT RAISE(ABORT, 'result is append-only'); END;
CREATE TRIGGER score_no_delete BEFORE DELETE ON score WHEN NOT EXISTS (SELECT 1 FROM event JOIN result ON result.job_id = event.job_id AND result.token = event.token WHERE event.kind = 'redone' AND event.job_id = OLD.job_id) BEGIN SELECT RAISE(ABORT, 'score is append-only'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('event',31);
COMMIT;
