//! Configurations: what they may say, and that what is wrong is named with its line.

use kv::config::{Config, Limits};
use std::path::Path;
use std::time::Duration;

const SHORT: &str = "\
cluster: shop
nodes:
  - { name: node1, id: 1, raft: '127.0.0.1:7001', http: '127.0.0.1:8001' }
  - { name: node2, id: 2, raft: '127.0.0.1:7002', http: '127.0.0.1:8002' }
";

const LONG: &str = "\
cluster: shop
data_directory: /var/lib/kv
heartbeat_milliseconds: 20
election_timeout_milliseconds: [200, 300]
request_timeout_milliseconds: 1000
clock_drift_milliseconds: 10
snapshot_interval: 500
limits:
  value_bytes: 1000
  transaction_bytes: 5000
tls:
  authority: certificates/authority.pem
  certificate: certificates/{name}.pem
  key: certificates/{name}.key
nodes:
  - name: node1
    id: 1
    raft: node1.example:7000
    http: node1.example:8000
  - name: node4
    id: 4
    raft: node4.example:7000
    http: node4.example:8000
    joining: true
";

#[test]
fn a_short_one_has_sensible_defaults() {
    let config = Config::parse(SHORT).unwrap();
    assert_eq!(config.cluster, "shop");
    assert_eq!(config.node("node2").unwrap().id, 2);
    assert_eq!(config.data_directory, Path::new("data"));
    assert_eq!(config.limits, Limits::default());
    assert_eq!((config.snapshot_interval, config.tls), (10_000, None));
    assert!(config.timing.heartbeat * 2 <= config.timing.election_timeout.0);
    assert_eq!(config.timing.clock_drift, None);
}

#[test]
fn a_long_one_says_everything() {
    let config = Config::parse(LONG).unwrap();
    let milliseconds = Duration::from_millis;
    assert_eq!(config.timing.heartbeat, milliseconds(20));
    assert_eq!(config.timing.election_timeout, (milliseconds(200), milliseconds(300)));
    assert_eq!(config.timing.request_timeout, milliseconds(1000));
    assert_eq!(config.timing.clock_drift, Some(milliseconds(10)));
    assert_eq!(config.limits.value_bytes, 1000);
    assert_eq!(config.limits.key_bytes, Limits::default().key_bytes);
    assert!(config.node("node4").unwrap().joining && !config.node("node1").unwrap().joining);
    assert_eq!(config.tls.unwrap().authority, Path::new("certificates/authority.pem"));
}

#[test]
fn paths_count_from_where_the_file_is() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("cluster.yaml");
    std::fs::write(&file, LONG.replace("/var/lib/kv", "state")).unwrap();
    let config = Config::load(&file).unwrap();
    assert_eq!(config.data_directory, directory.path().join("state"));
    let tls = config.tls.unwrap();
    assert_eq!(tls.key, directory.path().join("certificates/{name}.key"));
    std::fs::write(&file, LONG).unwrap();
    assert_eq!(Config::load(&file).unwrap().data_directory, Path::new("/var/lib/kv"));
}

/// What is wrong with a text, its line, and a part of what is said about it.
#[track_caller]
fn refused(text: &str, line: u64, reason: &str) {
    let error = Config::parse(text).expect_err(reason);
    assert!(error.reason.contains(reason), "{error}");
    assert_eq!(error.line, Some(line), "{error}");
    assert!(error.to_string().starts_with(&format!("line {line}: ")), "{error}");
    assert_eq!(
        error.to_string().matches("line ").count() - error.reason.matches("on line").count(),
        1,
        "{error}"
    );
}

#[test]
fn what_is_no_configuration_names_the_line() {
    refused(&SHORT.replace("id: 2", "id: two"), 4, "invalid");
    refused(&format!("{SHORT}colour: red\n"), 5, "unknown field");
    refused(&format!("{SHORT}limits:\n  key_bites: 3\n"), 6, "unknown field");
    refused(&format!("{SHORT}heartbeat_milliseconds: -1\n"), 5, "invalid");
    refused(&format!("{SHORT}cluster: twice\n"), 5, "duplicate");
    refused(&SHORT.replace("cluster: shop\n", ""), 1, "missing field");
    refused(&SHORT.replace(" }\n  - ", "\n  - "), 4, "");
    assert!(Config::parse("").is_err());
}

#[test]
fn what_makes_no_sense_names_the_line() {
    refused(&SHORT.replace("shop", "my shop"), 1, "use letters, digits");
    refused(&SHORT.replace("node2", "../node2"), 4, "use letters, digits");
    refused(&SHORT.replace("id: 2", "id: 1"), 4, "the id 1 is taken already, on line 3");
    let users = format!("id: {}", little_raft::USER);
    refused(&SHORT.replace("id: 2", &users), 4, "stands for users");
    refused(&SHORT.replace("node2", "node1"), 4, "the name node1 is taken already, on line 3");
    refused(&SHORT.replace(":8002", ":7001"), 4, "127.0.0.1:7001 is taken already, on line 3");
    refused(&SHORT.replace("127.0.0.1:8002", "8002"), 4, "write host:port");
    refused(&SHORT.replace(":8002", ":80020"), 4, "write host:port");
    refused(&SHORT.replace(":8002", ":0"), 4, "write host:port");
    refused("cluster: shop\nnodes: []\n", 2, "at least one node");
    refused(&SHORT.replace(" }", ", joining: true }"), 3, "at least one node");
    let more = |line: &str| format!("{SHORT}{line}\n");
    refused(&more("heartbeat_milliseconds: 0"), 5, "use 100");
    refused(&more("election_timeout_milliseconds: [150, 300]"), 5, "use 500 to 1000");
    refused(&more("election_timeout_milliseconds: [500, 300]"), 5, "use 500 to 1000");
    refused(&more("request_timeout_milliseconds: 900"), 5, "more than 1000");
    refused(&more("clock_drift_milliseconds: 500"), 5, "leave it out");
    refused(&more("snapshot_interval: 0"), 5, "at least 1");
    refused(&more("limits: { writes_in_flight: 0 }"), 5, "at least 1");
    refused(&more("limits: { value_bytes: 5000000 }"), 5, "raise transaction_bytes");
    refused(&more("limits: { bytes_in_flight: 1000000 }"), 5, "raise bytes_in_flight");
    refused(&more("limits: { transaction_bytes: 40000000 }"), 5, "at most");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nowhere/cluster.yaml")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/cluster.yaml: cannot be read"), "{error}");
}
