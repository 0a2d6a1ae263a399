//! What travels between nodes: messages as bytes, and who speaks to whom.

use crate::command::Command;
use crate::identity::Identity;
use crate::snapshots::Handle;
use bytes::Bytes;
use little_raft::{Body, LogId, Message, ReplicaID, Run, USER};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Status};

/// A message of Raft between nodes of this database.
pub(crate) type RaftMessage = Message<Command, Handle>;

/// Messages are cut to this many bytes, where that is possible.
const GOOD_SIZE: usize = 1024 * 1024;
/// No message is larger: the largest transaction and what is around it.
pub(crate) const MAX_MESSAGE: usize = crate::config::MAX_TRANSACTION + 1024 * 1024;

/// The bytes of a message. Entries that are too many for one message become several, which say the
/// same: each goes on where the one before it ends.
///
/// # Errors
/// If there is an entry that fits into none.
pub(crate) fn encode(message: &RaftMessage) -> Result<Vec<Bytes>, String> {
    encode_within(message, GOOD_SIZE)
}

fn encode_within(message: &RaftMessage, good_size: usize) -> Result<Vec<Bytes>, String> {
    let bytes = postcard::to_allocvec(message).map_err(|error| error.to_string())?;
    if bytes.len() <= good_size {
        return Ok(vec![bytes.into()]);
    }
    let fits = bytes.len() <= MAX_MESSAGE;
    let Some(halves) = halves(message) else {
        let reason = format!("a message of {} bytes is too large to be sent", bytes.len());
        return if fits { Ok(vec![bytes.into()]) } else { Err(reason) };
    };
    drop(bytes);
    let mut encoded = encode_within(&halves.0, good_size)?;
    encoded.extend(encode_within(&halves.1, good_size)?);
    Ok(encoded)
}

/// A message's entries in two, if there are two.
fn halves(message: &RaftMessage) -> Option<(RaftMessage, RaftMessage)> {
    let Message { from_id, term, body } = message;
    let Body::AppendEntries { prev, runs, commit, round } = body else { return None };
    let (first, last) = (runs.first()?.first, runs.last()?.last().index);
    if first == last {
        return None;
    }
    let middle = first + (last - first) / 2;
    let part = |from: usize, to: usize| -> Vec<Run<Command>> {
        let inside = runs.iter().filter(|run| run.first <= to && run.last().index >= from);
        inside.map(|run| run.slice(from, to)).collect()
    };
    let (left, right) = (part(first, middle), part(middle + 1, last));
    let message = |prev: LogId, runs| Message {
        from_id: *from_id,
        term: *term,
        body: Body::AppendEntries { prev, runs, commit: *commit, round: *round },
    };
    let between = left.last()?.last();
    Some((message(*prev, left), message(between, right)))
}

/// What somebody's bytes say, if they are a message that a node may send to another.
///
/// # Errors
/// If they are not.
pub(crate) fn decode(bytes: &[u8], from: ReplicaID) -> Result<RaftMessage, String> {
    match postcard::take_from_bytes::<RaftMessage>(bytes) {
        Err(error) => Err(format!("{} bytes are no message: {error}", bytes.len())),
        Ok((_, rest)) if !rest.is_empty() => {
            Err(format!("a message is followed by {} bytes that are none", rest.len()))
        }
        Ok((message, _)) => match message.from_id {
            USER => Err(format!("node {from} speaks in the name of a user")),
            id if id == from => Ok(message),
            id => Err(format!("node {from} speaks in the name of node {id}")),
        },
    }
}

/// Adds to a call who speaks to whom.
pub(crate) fn stamp<T>(own: &Identity, to: ReplicaID, body: T) -> Request<T> {
    let mut request = Request::new(body);
    let id = own.id.to_string();
    let to = to.to_string();
    let parts = [
        ("kv-cluster", Some(own.cluster.as_str())),
        ("kv-origin", own.origin.as_deref()),
        ("kv-from", Some(&id)),
        ("kv-identity", Some(&own.identity)),
        ("kv-to", Some(&to)),
    ];
    for (key, value) in parts {
        // All of them are made of letters, digits and some signs.
        if let Some(value) = value.and_then(|value| MetadataValue::try_from(value).ok()) {
            request.metadata_mut().insert(key, value);
        }
    }
    request
}

/// Who calls, as the call says.
///
/// # Errors
/// If the call is not for this node, or not from one of this cluster.
pub(crate) fn caller(own: &Identity, metadata: &MetadataMap) -> Result<Identity, Status> {
    let refuse = |reason: String| Status::failed_precondition(reason);
    let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
    let needed = |key: &str| {
        text(key).ok_or_else(|| refuse(format!("the call lacks {key}; this port is for nodes")))
    };
    let id = |key: &str| {
        let number = needed(key)?.parse::<ReplicaID>();
        number.map_err(|_| refuse(format!("{key} is no node id")))
    };
    let cluster = needed("kv-cluster")?.to_string();
    if cluster != own.cluster {
        return Err(refuse(format!(
            "this node belongs to cluster {:?}, the caller to {cluster:?}; check the addresses",
            own.cluster
        )));
    }
    let to = id("kv-to")?;
    if to != own.id {
        return Err(refuse(format!(
            "this is node {}, the caller wants node {to}; check the addresses",
            own.id
        )));
    }
    let origin = text("kv-origin").map(str::to_string);
    check_origin(own, origin.as_deref()).map_err(refuse)?;
    Ok(Identity { cluster, id: id("kv-from")?, identity: needed("kv-identity")?.into(), origin })
}

/// Nodes that began with different states must never agree on anything.
///
/// # Errors
/// If they did.
pub(crate) fn check_origin(own: &Identity, other: Option<&str>) -> Result<(), String> {
    match (own.origin.as_deref(), other) {
        (Some(own), Some(other)) if own != other => Err(format!(
            "this node began with state {own:?}, the other with {other:?}; restore the same backup \
             at every node of a new cluster, or at none"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Action, CommandId, Transaction};
    use little_raft::Membership;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn command(number: u64, length: usize) -> Command {
        let transaction = Transaction::put("key", vec![1; length]);
        let action = Arc::new(Action::Write { session: None, transaction });
        Command { id: CommandId { start: 7, number }, action }
    }

    /// Entries of several terms, with values of these lengths; none stands for a configuration.
    fn runs(first: usize, lengths: &[(bool, Option<usize>)]) -> Vec<Run<Command>> {
        let (mut runs, mut term): (Vec<Run<Command>>, usize) = (Vec::new(), 1);
        for (place, (new_run, length)) in lengths.iter().enumerate() {
            let index = first + place;
            term += usize::from(*new_run);
            let (transitions, membership) = match length {
                Some(length) => (vec![command(index as u64, *length)], None),
                None => (vec![], Some(Arc::new(Membership::default()))),
            };
            match runs.last_mut() {
                Some(run) if run.membership.is_none() && membership.is_none() && !new_run => {
                    let mut all = run.transitions.to_vec();
                    all.extend(transitions);
                    run.transitions = Arc::new(all);
                }
                _ => {
                    let transitions = Arc::new(transitions);
                    runs.push(Run { first: index, term, transitions, membership });
                }
            }
        }
        runs
    }

    proptest! {
        /// However an append is cut, its parts are appends that follow one another, say the same
        /// together, and are small if they can be.
        #[test]
        fn parts_of_a_message_say_what_the_whole_says(
            lengths in prop::collection::vec((any::<bool>(), prop::option::weighted(0.9, 0..300_usize)), 0..40),
            good_size in 1..2000_usize,
        ) {
            let (prev, commit) = (LogId { term: 1, index: 9 }, 12);
            let (whole, round) = (runs(10, &lengths), Duration::from_nanos(5));
            let body = Body::AppendEntries { prev, runs: whole.clone(), commit, round };
            let message = Message { from_id: 3, term: 99, body };
            let (mut before, mut entries) = (prev, Vec::new());
            for bytes in encode_within(&message, good_size).unwrap() {
                let Message { from_id: 3, term: 99, body } = decode(&bytes, 3).unwrap() else {
                    panic!("another message");
                };
                let Body::AppendEntries { prev, runs, commit: 12, round: echo } = body else {
                    panic!("another message");
                };
                prop_assert_eq!((prev, echo), (before, round));
                let count: usize = runs.iter().map(|run| run.last().index - run.first + 1).sum();
                prop_assert!(bytes.len() <= good_size || count <= 1, "{} bytes, {}", bytes.len(), count);
                before = runs.last().map_or(before, Run::last);
                entries.extend(runs.into_iter().flat_map(|run| single(&run)));
            }
            let expected: Vec<_> = whole.iter().flat_map(single).collect();
            prop_assert_eq!(entries, expected);
        }

        /// Whatever comes, it is a message or an error.
        #[test]
        fn bytes_are_a_message_or_not(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = decode(&bytes, 3) {
                let again = encode(&message).unwrap();
                prop_assert_eq!(decode(&again[0], 3).unwrap(), message);
            }
        }
    }

    fn single(run: &Run<Command>) -> Vec<Run<Command>> {
        (run.first..=run.last().index).map(|index| run.slice(index, index)).collect()
    }

    #[test]
    fn nobody_speaks_in_the_name_of_another_or_of_a_user() {
        let refused = |message: &RaftMessage, from| {
            decode(&encode(message).unwrap()[0], from).expect_err("must be refused")
        };
        let vote = Message { from_id: 3, term: 1, body: Body::Vote { pre: false, granted: true } };
        assert!(refused(&vote, 2).contains("in the name of node 3"));
        for from in [2, USER] {
            let error = refused(&Message::transfer_leadership(2), from);
            assert!(error.contains("in the name of a user"), "{error}");
        }
    }

    #[test]
    fn an_entry_that_is_too_large_is_an_error() {
        let (prev, commit, round) = (LogId::default(), 0, Duration::ZERO);
        let runs = runs(1, &[(false, Some(MAX_MESSAGE)), (false, Some(1))]);
        let body = Body::AppendEntries { prev, runs, commit, round };
        let error = encode(&Message { from_id: 1, term: 1, body }).unwrap_err();
        assert!(error.contains("too large to be sent"), "{error}");
    }
}
