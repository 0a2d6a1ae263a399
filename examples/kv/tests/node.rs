//! Nodes of one cluster in one process, over real sockets and disks.

mod common;

use common::*;
use kv::command::*;
use kv::config::NodeConfig;
use kv::node::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_at_any_node_is_read_at_every_node() {
    let cluster = Cluster::start(3).await;
    for (number, node) in cluster.running().enumerate() {
        put(node, &format!("key{number}"), &format!("value{number}")).await;
    }
    for node in cluster.running() {
        for number in 0..3 {
            assert_eq!(get(node, &format!("key{number}")).await, Some(format!("value{number}")));
        }
    }
    let forwarded: u64 = cluster.running().map(|node| node.counters().writes_forwarded).sum();
    assert!(forwarded >= 2, "followers send writes to the leader");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_comes_back_with_its_disk() {
    let mut cluster = Cluster::start(3).await;
    put(cluster.node(0), "before", "1").await;
    let leader = cluster.leader().await;
    cluster.kill(leader).await;
    let other = (leader + 1) % 3;
    put(cluster.node(other), "while away", "2").await;
    cluster.restart(leader).await;
    assert_eq!(get(cluster.node(leader), "before").await.as_deref(), Some("1"));
    assert_eq!(get(cluster.node(leader), "while away").await.as_deref(), Some("2"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::start(3).await;
    for number in 0..20 {
        put(cluster.node(number % 3), &format!("key{number}"), "value").await;
    }
    let status = cluster.node(0).status();
    for place in 0..3 {
        cluster.kill(place).await;
    }
    for place in 0..3 {
        cluster.restart(place).await;
    }
    let page = cluster.node(1).read(Consistency::Linearizable, |store| store.list("key", None, 99));
    assert_eq!(page.await.unwrap().entries.len(), 20);
    let later = until(cluster.node(0), "a leader", |status| status.leader.is_some()).await;
    assert!(later.term > status.term, "{} then {}", status.term, later.term);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_long_gets_a_snapshot() {
    let mut cluster = Cluster::start_with(3, |config| config.snapshot_interval = 50).await;
    let follower = (cluster.leader().await + 1) % 3;
    put(cluster.node(follower), "early", "1").await;
    cluster.kill(follower).await;
    let writer = (follower + 1) % 3;
    let session = session(cluster.node(writer)).await;
    for sequence in 1..=300 {
        let session = Session { sequence, ..session };
        let transaction = Transaction::put(format!("key{}", sequence % 100), vec![7; 5000]);
        write(cluster.node(writer), Some(session), transaction).await;
    }
    let status = until(cluster.node(writer), "a snapshot", |it| it.snapshot.is_some()).await;
    assert!(status.first_index > 10, "the log is compacted: {status:#?}");
    cluster.restart(follower).await;
    let node = cluster.node(follower);
    assert_eq!(get(node, "early").await.as_deref(), Some("1"));
    assert_eq!(node.counters().snapshots_received, 1);
    assert_eq!(node.status().keys, 101);
    // What came with the snapshot is there after a restart too, and goes on.
    cluster.kill(follower).await;
    cluster.restart(follower).await;
    put(cluster.node(follower), "late", "2").await;
    assert_eq!(get(cluster.node(follower), "early").await.as_deref(), Some("1"));
    // Only what is needed stays on the disk.
    let directory = cluster.directory.path().join("node1/snapshots");
    let files = std::fs::read_dir(directory).unwrap().count();
    assert!((1..=4).contains(&files), "{files} files");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_carries_a_request_out_once_whatever_happens_to_the_leader() {
    let mut cluster = Cluster::start(3).await;
    let session = session(cluster.node(0)).await;
    let create = Transaction::put("counter", "0").only_if("counter", Expected::Absent);
    let first = write(cluster.node(0), Some(session), create.clone()).await;
    assert!(matches!(first, Outcome::Done { revision: 1, .. }), "{first:?}");
    // The same again, elsewhere and later: the outcome that it had, not that of a second try.
    let leader = cluster.leader().await;
    cluster.kill(leader).await;
    let other = cluster.node((leader + 1) % 3);
    assert_eq!(write(other, Some(session), create.clone()).await, first);
    let next = Session { sequence: 2, ..session };
    let second = write(other, Some(next), create).await;
    let failed = Outcome::ConditionFailed { key: "counter".to_string(), actual: Some(1) };
    assert_eq!(second, failed);
    let stale = write(other, Some(session), Transaction::delete("counter")).await;
    assert_eq!(stale, Outcome::StaleSequence { latest: 2 });
    let unknown = Session { client: 999_999, sequence: 1 };
    let expired = write(other, Some(unknown), Transaction::delete("counter")).await;
    assert_eq!(expired, Outcome::SessionExpired);
    assert_eq!(get(other, "counter").await.as_deref(), Some("0"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_promised() {
    let seconds = std::time::Duration::from_secs;
    let mut cluster = Cluster::start_with(3, |config| {
        config.timing.request_timeout = seconds(2);
        // It goes on leading for a while when it is alone.
        config.timing.election_timeout = (seconds(2), seconds(3));
    })
    .await;
    put(cluster.node(0), "key", "value").await;
    let survivor = cluster.leader().await;
    for place in (0..3).filter(|place| *place != survivor) {
        cluster.kill(place).await;
    }
    let node = cluster.node(survivor);
    // It still leads, and so cannot know whether this will be committed one day.
    let written = node.write(None, Transaction::put("key", "lost?")).await;
    assert_eq!(written, Err(WriteError::OutcomeUnknown));
    let read = node.read(Consistency::Linearizable, |store| store.len()).await;
    assert_eq!(read, Err(ReadError::NoLeader));
    until(node, "stepping down", |status| status.leader.is_none()).await;
    let written = node.write(None, Transaction::put("key", "refused")).await;
    assert_eq!(written, Err(WriteError::NoLeader));
    let read = node.read(Consistency::Stale, |store| store.get("key").cloned()).await;
    assert_eq!(read.unwrap().unwrap().value, "value");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_where_it_is_sent() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (from, to) = (cluster.config.nodes[leader].id, cluster.config.nodes[(leader + 1) % 3].id);
    // Asked of a node that is neither.
    let bystander = cluster.node((leader + 2) % 3);
    assert_eq!(bystander.transfer(Some(to)).await, Ok(to));
    until(cluster.node(leader), "following", |status| status.leader == Some(to)).await;
    assert_ne!(cluster.node(leader).transfer(None).await, Ok(to));
    let refused = bystander.transfer(Some(77)).await;
    assert_eq!(refused, Err(TransferError::NotAVoter { voters: [1, 2, 3].into() }));
    assert_eq!(bystander.transfer(Some(from)).await, Ok(from));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_shut_down_hands_over_first() {
    let mut cluster = Cluster::start(3).await;
    put(cluster.node(0), "key", "value").await;
    let leader = cluster.leader().await;
    let node = cluster.nodes[leader].take().unwrap();
    let term = node.status().term;
    node.shutdown().await;
    let status = node.status();
    assert_eq!((status.role.as_str(), &status.failure), ("stopped", &None));
    let refused = node.write(None, Transaction::put("key", "late")).await;
    assert_eq!(refused, Err(WriteError::ShuttingDown));
    // It has lived to see another lead.
    assert!(status.term > term, "{} after {term}", status.term);
    let other = cluster.node((leader + 1) % 3);
    let id = cluster.config.nodes[leader].id;
    until(other, "another leader", |it| it.leader.is_some_and(|leader| leader != id)).await;
    assert_eq!(get(other, "key").await.as_deref(), Some("value"));
    cluster.stop().await;
}

/// The steps of a change of the members, which must succeed.
async fn change(node: &Node, change: MembersChange) -> Vec<MembersStep> {
    let (mut receiver, mut steps) = (node.change_members(change), Vec::new());
    while let Some(step) = receiver.recv().await {
        assert!(!matches!(step, MembersStep::Failed { .. }), "{step:?} after {steps:?}");
        steps.push(step);
    }
    assert!(matches!(steps.last(), Some(MembersStep::Done { .. })), "{steps:?}");
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_can_be_replaced_one_after_the_other() {
    let mut cluster = Cluster::start_with(3, |config| config.snapshot_interval = 20).await;
    for number in 0..50 {
        put(cluster.node(number % 3), &format!("key{number}"), "value").await;
    }
    for round in 0..3 {
        // The newcomer knows of the others from its file; they hear of it from the request.
        let newcomer = node_config(4 + round);
        let mut config = cluster.config.clone();
        config.nodes.push(newcomer.clone());
        config.nodes.last_mut().unwrap().joining = true;
        let started = Node::start(config.clone(), &newcomer.name).await.unwrap();
        cluster.nodes.push(Some(started));
        cluster.config = config;
        let voters = (2 + round..=4 + round).collect();
        let nodes = vec![newcomer.address()];
        let request = MembersChange { voters, nodes, ..MembersChange::default() };
        // The oldest node is asked: it may lead, and is on its way out.
        let steps = change(cluster.node(round), request).await;
        let learned = MembersStep::LearnersAdded { ids: [4 + round].into() };
        assert!(steps.contains(&learned), "{steps:?}");
        assert!(steps.iter().any(|it| matches!(it, MembersStep::CatchingUp { .. })), "{steps:?}");
        let others = 2 + round..=4 + round;
        let there = |status: &NodeStatus| status.voters == others.clone().collect();
        until(cluster.node(round + 1), "the new members", there).await;
        cluster.kill(round).await;
        put(cluster.node(3 + round), &format!("round{round}"), "value").await;
    }
    for place in 3..6 {
        let read = cluster.node(place).read(Consistency::Linearizable, |store| store.len());
        assert_eq!(read.await, Ok(53));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nodes_are_is_part_of_the_state() {
    let mut cluster = Cluster::start_with(1, |config| config.snapshot_interval = 5).await;
    let newcomer = node_config(2);
    let mut config = cluster.config.clone();
    config.nodes.push(NodeConfig { joining: true, ..newcomer.clone() });
    let other = Node::start(config, &newcomer.name).await.unwrap();
    let (voters, nodes) = ([1, 2].into(), vec![newcomer.address()]);
    change(cluster.node(0), MembersChange { voters, nodes, ..MembersChange::default() }).await;
    for number in 0..20 {
        put(cluster.node(0), &format!("key{number}"), "value").await;
    }
    until(cluster.node(0), "a snapshot", |status| status.snapshot.is_some()).await;
    // Its file still says nothing of the other, without whom it cannot lead; its snapshot does.
    cluster.kill(0).await;
    cluster.restart(0).await;
    assert_eq!(get(cluster.node(0), "key19").await.as_deref(), Some("value"));
    assert!(cluster.node(0).status().nodes.contains(&newcomer.address()));
    other.halt().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_how_far_everybody_is() {
    let cluster = Cluster::start_with(3, |config| {
        config.timing.clock_drift = Some(std::time::Duration::from_millis(20));
    })
    .await;
    put(cluster.node(0), "key", "value").await;
    let leader = cluster.node(cluster.leader().await);
    let level = |status: &NodeStatus| {
        let behind = status.peers.iter().filter(|peer| peer.lag > 0 || !peer.connected).count();
        behind == 0 && status.peers.len() == 2 && status.commit_index == status.last_index
    };
    let status = until(leader, "everybody to be level", level).await;
    assert!(status.saved_index >= status.last_index, "{status:#?}");
    assert_eq!((status.keys, status.revision, status.sessions), (1, 1, 1));
    assert_eq!((status.cluster.as_str(), status.voters.len(), status.nodes.len()), ("test", 3, 3));
    assert_eq!(
        status.elections.last().map(|it| (it.term, it.leader)),
        Some((status.term, status.id))
    );
    assert!(status.peers.iter().all(|peer| peer.activity == "replicating"), "{status:#?}");
    assert!(status.counters.saves > 0 && status.counters.messages_sent > 0, "{status:#?}");
    let read = leader.read(Consistency::Lease, |store| store.len()).await;
    assert_eq!(read, Ok(1));
    let mut news = leader.watch_status();
    news.changed().await.unwrap();
    assert_eq!(news.borrow_and_update().leader, Some(status.id));
    leader.halt().await;
    let ended = until(leader, "its end", |status| status.role == "stopped").await;
    assert_eq!((ended.leader, ended.failure), (None, None));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_members_that_makes_no_sense_says_why() {
    let cluster = Cluster::start(1).await;
    let node = cluster.node(0);
    until(node, "a leader", |status| status.leader.is_some()).await;
    let nodes = vec![node_config(little_raft::USER).address()];
    let cases = [
        (MembersChange::default(), "name at least one voter"),
        (MembersChange { voters: [1].into(), nodes, ..MembersChange::default() }, "for users"),
        (MembersChange { voters: [1, 9].into(), ..MembersChange::default() }, "where node 9 is"),
        (
            MembersChange { voters: [1].into(), learners: [1].into(), ..MembersChange::default() },
            "cannot both vote and only learn",
        ),
    ];
    for (change, expected) in cases {
        let mut steps = node.change_members(change);
        let Some(MembersStep::Failed { reason }) = steps.recv().await else { panic!("{expected}") };
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(steps.recv().await, None);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_disk_is_refused_until_its_node_was_removed() {
    let mut cluster = Cluster::start(3).await;
    put(cluster.node(0), "key", "value").await;
    let wiped = (cluster.leader().await + 1) % 3;
    let id = cluster.config.nodes[wiped].id;
    // Everybody must have met it.
    for place in 0..3 {
        until(cluster.node(place), "everything", |status| status.keys == 1).await;
    }
    cluster.kill(wiped).await;
    let directory = cluster.directory.path().join(format!("node{id}"));
    std::fs::remove_dir_all(&directory).unwrap();
    cluster.restart(wiped).await;
    let leader = cluster.leader().await;
    let refused = |status: &NodeStatus| {
        let peer = status.peers.iter().find(|peer| peer.id == id);
        let problem = peer.and_then(|peer| peer.problem.clone());
        problem.is_some_and(|problem| problem.contains("another disk than before"))
    };
    until(cluster.node(leader), "refusing the wiped disk", refused).await;
    assert_eq!(cluster.node(wiped).status().keys, 0);
    // Removed, and added again as what it is: an empty node.
    let others: std::collections::BTreeSet<_> = (1..=3).filter(|it| *it != id).collect();
    let without = MembersChange { voters: others, ..MembersChange::default() };
    change(cluster.node(leader), without).await;
    cluster.kill(wiped).await;
    std::fs::remove_dir_all(&directory).unwrap();
    cluster.config.nodes[wiped].joining = true;
    cluster.restart(wiped).await;
    let all = MembersChange { voters: [1, 2, 3].into(), ..MembersChange::default() };
    change(cluster.node(leader), all).await;
    assert_eq!(get(cluster.node(wiped), "key").await.as_deref(), Some("value"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_gone_is_not_begun_anew() {
    let mut cluster = Cluster::start(1).await;
    put(cluster.node(0), "key", "value").await;
    cluster.kill(0).await;
    std::fs::remove_dir_all(cluster.directory.path().join("node1/log")).unwrap();
    let error = Node::start(cluster.config.clone(), "node1").await.err().unwrap().to_string();
    assert!(error.contains("node1"), "{error}");
    assert!(cluster.directory.path().join("node1/identity.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_in_order_and_without_gaps() {
    let cluster = Cluster::start_with(1, |config| config.limits.changes_kept = 8).await;
    let node = cluster.node(0);
    let mut fruit = node.watch(None, "fruit/").unwrap();
    let session = session(node).await;
    for sequence in 1..=4 {
        let (key, session) =
            (["fruit/", "other/"][sequence % 2], Session { sequence: sequence as u64, ..session });
        write(node, Some(session), Transaction::put(format!("{key}{sequence}"), "x")).await;
    }
    write(node, None, Transaction::delete("fruit/2")).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(fruit.next().await.unwrap());
    }
    let seen: Vec<_> =
        seen.iter().map(|it| (it.revision, &it.key[..], it.value.is_some())).collect();
    assert_eq!(seen, [(2, "fruit/2", true), (4, "fruit/4", true), (5, "fruit/2", false)]);
    let mut all = node.watch(Some(2), "").unwrap();
    assert_eq!(all.next().await.unwrap().len(), 4);
    for number in 0..8 {
        write(node, None, Transaction::put(format!("more{number}"), "x")).await;
    }
    assert_eq!(node.watch(Some(5), "").err(), Some(WatchError::Forgotten { oldest: 6 }));
    assert_eq!(node.watch(Some(6), "").unwrap().next().await.unwrap().len(), 8);
    assert_eq!(all.next().await.unwrap().len(), 8);
    let waiting = tokio::spawn(async move { all.next().await });
    cluster.stop().await;
    assert_eq!(waiting.await.unwrap(), Err(WatchError::ShuttingDown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_begins_a_new_cluster() {
    let cluster = Cluster::start(1).await;
    let session = session(cluster.node(0)).await;
    for sequence in 1..=30 {
        let session = Session { sequence, ..session };
        let transaction = Transaction::put(format!("key{sequence}"), vec![1; 20_000]);
        write(cluster.node(0), Some(session), transaction).await;
    }
    let mut backup = cluster.node(0).backup().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = backup.chunks.recv().await {
        bytes.extend(chunk.unwrap());
    }
    let file = cluster.node(0).snapshot().await.unwrap();
    assert_eq!((file.revision, file.keys, file.bytes), (30, 30, bytes.len() as u64));
    assert_eq!(std::fs::read(&file.path).unwrap(), bytes);

    let directory = tempfile::TempDir::new().unwrap();
    let config = config(3, &directory);
    let mut damaged = bytes.clone();
    damaged[1000] ^= 1;
    let error = Node::restore(&config, "node1", &damaged[..]).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    for name in ["node1", "node2", "node3"] {
        assert_eq!(Node::restore(&config, name, &bytes[..]).unwrap().revision, 30);
    }
    let error = Node::restore(&config, "node1", &bytes[..]).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    let nodes = vec![None, None, None];
    let mut restored = Cluster { config, nodes, directory };
    for place in 0..3 {
        restored.restart(place).await;
    }
    // The session lives on: its last request is not carried out again.
    let again = Session { sequence: 30, ..session };
    let outcome = write(restored.node(1), Some(again), Transaction::delete("key1")).await;
    assert!(matches!(outcome, Outcome::Done { revision: 30, .. }), "{outcome:?}");
    put(restored.node(2), "new", "value").await;
    let read = restored.node(0).read(Consistency::Linearizable, |store| store.len());
    assert_eq!(read.await, Ok(31));
    restored.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_not_restored_is_kept_out() {
    let cluster = Cluster::start(1).await;
    put(cluster.node(0), "key", "value").await;
    let file = cluster.node(0).snapshot().await.unwrap();
    let directory = tempfile::TempDir::new().unwrap();
    let config = config(3, &directory);
    for name in ["node1", "node2"] {
        Node::restore(&config, name, std::fs::File::open(&file.path).unwrap()).unwrap();
    }
    let mut restored = Cluster { config, nodes: vec![None, None, None], directory };
    for place in 0..3 {
        restored.restart(place).await;
    }
    put(restored.node(0), "more", "value").await;
    let refused = |status: &NodeStatus| {
        let problems = status.peers.iter().filter_map(|peer| peer.problem.as_ref());
        problems.into_iter().any(|it| it.contains("restore the same backup"))
    };
    let leader = restored.leader().await;
    until(restored.node(leader), "refusing the empty node", refused).await;
    assert_eq!(restored.node(2).status().keys, 0);
    restored.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_refused_at_the_door() {
    let cluster = Cluster::start_with(3, |config| {
        config.limits.key_bytes = 10;
        config.limits.value_bytes = 100;
        config.limits.transaction_bytes = 400;
        config.limits.transaction_steps = 3;
        config.limits.writes_in_flight = 4;
    })
    .await;
    put(cluster.node(0), "key", "value").await;
    let node = cluster.node(0);
    let long = Transaction::put("key", vec![0; 101]);
    let cases = [
        (Transaction::put("a long key here", "x"), "key_bytes"),
        (long.clone(), "value_bytes"),
        (
            Transaction { operations: vec![long.operations[0].clone(); 4], ..Default::default() },
            "transaction_steps",
        ),
    ];
    for (transaction, expected) in cases {
        let Err(WriteError::TooLarge { reason }) = node.write(None, transaction).await else {
            panic!("{expected}");
        };
        assert!(reason.contains(expected), "{reason}");
    }
    for transaction in [Transaction::put("", "x"), Transaction::default()] {
        let refused = node.write(None, transaction).await;
        assert!(matches!(refused, Err(WriteError::Invalid { .. })), "{refused:?}");
    }
    // Many at once at the leader: some find no room, and the others are done.
    let leader = cluster.node(cluster.leader().await).clone();
    let writes: Vec<_> = (0..200)
        .map(|number| {
            let leader = leader.clone();
            let write = Transaction::put(format!("key{number}"), "x");
            tokio::spawn(async move { leader.write(None, write).await })
        })
        .collect();
    let (mut done, mut busy) = (0, 0);
    for write in writes {
        match write.await.unwrap() {
            Ok(_) => done += 1,
            Err(WriteError::Busy { retry_after }) if !retry_after.is_zero() => busy += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(done >= 4 && busy > 0, "{done} done, {busy} refused");
    let keys = leader.read(Consistency::Linearizable, |store| store.len()).await.unwrap();
    assert_eq!(keys, done + 1);
    assert_eq!(leader.counters().writes_busy, busy);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_belongs_to_one_node_and_an_address_to_one_process() {
    let mut cluster = Cluster::start(1).await;
    let taken = Node::start(cluster.config.clone(), "node1").await.err().unwrap().to_string();
    assert!(taken.contains("is it running already"), "{taken}");
    let unknown = Node::start(cluster.config.clone(), "nodeX").await.err().unwrap().to_string();
    assert!(unknown.contains("give --name one of node1"), "{unknown}");
    cluster.kill(0).await;
    let mut other = cluster.config.clone();
    other.nodes[0].id = 7;
    let foreign = Node::start(other, "node1").await.err().unwrap().to_string();
    assert!(foreign.contains("belongs to node 1"), "{foreign}");
    cluster.restart(0).await;
    cluster.stop().await;
}
