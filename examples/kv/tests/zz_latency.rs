//! t
mod common;
use common::*;
use kv::node::*;
use kv::config::NodeConfig;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn latency() {
    let mut cluster = Cluster::start(3).await;
    put(cluster.node(0), "a", "b").await;
    let newcomer = node_config(4);
    let mut config = cluster.config.clone();
    config.nodes.push(NodeConfig { joining: true, ..newcomer.clone() });
    cluster.nodes.push(Some(Node::start(config.clone(), &newcomer.name).await.unwrap()));
    cluster.config = config;
    let nodes = vec![newcomer.address()];
    for round in 0..8 {
        for (v, l) in [(vec![1, 2, 3], vec![]), (vec![1, 2, 3, 4], vec![]), (vec![1, 2, 3], vec![4]), (vec![1, 2, 3, 4], vec![])] {
            let change = MembersChange { voters: v.iter().copied().collect(), learners: l.iter().copied().collect(), nodes: nodes.clone() };
            let began = Instant::now();
            let mut steps = cluster.node(round % 3).change_members(change);
            let mut line = String::new();
            while let Some(step) = steps.recv().await {
                line += &format!("{}ms {}; ", began.elapsed().as_millis(), format!("{step:?}").split(' ').next().unwrap());
            }
            eprintln!("{v:?} {l:?}: {line}");
        }
    }
    cluster.stop().await;
}
