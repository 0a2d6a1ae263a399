//! What travels: frames of 16 bytes and a body.
//!
//! ```text
//! "DIN" | version | cluster | length | checksum | body, as postcard writes it
//!   3        1         4        4         4         length
//! ```
//!
//! Numbers are little-endian. `cluster` is a checksum of the members' addresses, so that members who
//! were told of different companies do not listen to each other; `checksum` covers it, the length
//! and the body.

use crate::order::{MAX_MESSAGE, Post, Transition};
use little_raft::{Body, Message, ReplicaID};
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Read, Result};
use std::net::SocketAddr;

const VERSION: u8 = 1;
const MAGIC: [u8; 4] = [b'D', b'I', b'N', VERSION];
const HEADER: usize = 16;
/// A replica sends up to 1,024 entries at once; each brings some numbers with it.
const MAX_BODY: usize = 1024 * (MAX_MESSAGE + 64);

pub(crate) type RaftMessage = Message<Transition, ()>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Packet {
    /// From replica to replica.
    Raft(RaftMessage),
    /// From a member to the leader.
    Post(Post),
    /// Nothing, but the connection lives.
    Ping,
}

impl Packet {
    /// Whether an honest member of a company of this size sends such a thing. There are no
    /// snapshots here, and nobody changes who belongs to the company.
    fn is_acceptable(&self, members: usize) -> bool {
        let is_member = |id: ReplicaID| id < members;
        match self {
            Packet::Raft(Message { from_id, body, .. }) => {
                let refused = matches!(
                    body,
                    Body::InstallSnapshot { .. }
                        | Body::ChangeMembership(_)
                        | Body::TransferLeadership(_)
                );
                is_member(*from_id) && !refused
            }
            Packet::Post(post) => {
                is_member(post.origin.member) && post.message.len() <= MAX_MESSAGE
            }
            Packet::Ping => true,
        }
    }
}

/// The frames of one company.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames {
    cluster: u32,
    members: usize,
}

impl Frames {
    /// For members at these addresses, the same everywhere and in the same order.
    pub(crate) fn new(addresses: &[SocketAddr]) -> Frames {
        let text = addresses.iter().map(|it| format!("{it},")).collect::<String>();
        Frames { cluster: crc32fast::hash(text.as_bytes()), members: addresses.len() }
    }

    /// The frame that holds a packet.
    pub(crate) fn encode(self, packet: &Packet) -> Result<Vec<u8>> {
        let mut frame = [&MAGIC[..], &self.cluster.to_le_bytes(), &[0; 8]].concat();
        frame = postcard::to_extend(packet, frame).map_err(Error::other)?;
        let length = u32::try_from(frame.len() - HEADER).unwrap_or(u32::MAX);
        frame[8..12].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(&frame[4..12], &frame[HEADER..]);
        frame[12..16].copy_from_slice(&checksum.to_le_bytes());
        Ok(frame)
    }

    /// Reads one frame. After an error the rest of what comes makes no sense.
    ///
    /// # Errors
    /// `InvalidData` if it is not a frame of this company and version, or nothing that is sent here;
    /// whatever the reader says, `UnexpectedEof` for half a frame.
    pub(crate) fn read(self, from: &mut impl Read) -> Result<Packet> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        if header[..3] != MAGIC[..3] {
            return Err(invalid("this is no frame"));
        } else if header[3] != VERSION {
            let text = format!("version {} instead of {VERSION}; update the older one", header[3]);
            return Err(invalid(&text));
        } else if number(4) != self.cluster {
            return Err(invalid("the other side was told of other members; compare the addresses"));
        }
        let length = number(8) as usize;
        if length > MAX_BODY {
            return Err(invalid(&format!("{length} bytes are announced, {MAX_BODY} are allowed")));
        }
        // Memory is taken for what has come, not for what was announced.
        let mut body = Vec::new();
        if from.take(length as u64).read_to_end(&mut body)? < length {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the connection ended in a frame"));
        }
        if number(12) != checksum(&header[4..12], &body) {
            return Err(invalid("the checksum does not match"));
        }
        match postcard::take_from_bytes::<Packet>(&body) {
            Ok((packet, [])) if packet.is_acceptable(self.members) => Ok(packet),
            Ok((_, [])) => Err(invalid("no member sends such a thing")),
            Ok(_) => Err(invalid("something follows the packet in its frame")),
            Err(error) => Err(invalid(&error.to_string())),
        }
    }
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(body);
    hasher.finalize()
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Origin;
    use little_raft::{LogId, Membership, Run, Snapshot};
    use std::sync::Arc;
    use std::time::Duration;

    fn frames(members: usize) -> Frames {
        let port = |it| SocketAddr::from(([127, 0, 0, 1], it));
        Frames::new(&(0..members as u16).map(port).collect::<Vec<_>>())
    }

    fn post(bytes: usize) -> Post {
        let origin = Origin { member: 1, life: u64::MAX };
        Post { origin, sequence: u64::MAX, message: Arc::new(vec![7; bytes].into()) }
    }

    fn raft(body: Body<Transition, ()>) -> Packet {
        Packet::Raft(Message { from_id: 1, term: 3, body })
    }

    fn appends(entries: usize, bytes: usize) -> Packet {
        let transitions = Arc::new(vec![Transition::Post(post(bytes)); entries]);
        let run = Run { first: 1, term: 2, transitions, membership: None };
        let (prev, runs, round) = (LogId::default(), vec![run], Duration::MAX);
        raft(Body::AppendEntries { prev, runs, commit: 1, round })
    }

    fn kind(frames: Frames, frame: &[u8]) -> ErrorKind {
        frames.read(&mut &frame[..]).expect_err("must be refused").kind()
    }

    #[test]
    fn packets_arrive_as_they_were_sent_one_after_the_other() {
        let packets = [Packet::Ping, Packet::Post(post(MAX_MESSAGE)), appends(2, 9), Packet::Ping];
        let stream: Vec<u8> =
            packets.iter().flat_map(|packet| frames(3).encode(packet).unwrap()).collect();
        let mut stream = &stream[..];
        for packet in packets {
            assert_eq!(frames(3).read(&mut stream).unwrap(), packet);
        }
        assert!(stream.is_empty());
    }

    #[test]
    fn the_most_that_a_replica_sends_at_once_fits() {
        let packet = appends(1024, MAX_MESSAGE);
        let frame = frames(3).encode(&packet).unwrap();
        assert_eq!(frames(3).read(&mut &frame[..]).unwrap(), packet);
    }

    #[test]
    fn every_half_and_every_flipped_bit_is_refused() {
        let frame = frames(3).encode(&appends(2, 30)).unwrap();
        for length in 0..frame.len() {
            assert_eq!(kind(frames(3), &frame[..length]), ErrorKind::UnexpectedEof);
        }
        for bit in 0..8 * frame.len() {
            let mut frame = frame.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            frames(3).read(&mut &frame[..]).expect_err("must be refused");
        }
    }

    #[test]
    fn what_no_member_sends_is_refused() {
        let snapshot = Snapshot { last_included_index: 1, last_included_term: 1, data: () };
        let (membership, round) = Default::default();
        let mut stranger = post(1);
        stranger.origin.member = 3;
        let packets = [
            Packet::Raft(Message::change_membership(vec![1], vec![])),
            raft(Body::ChangeMembership(Membership::default())),
            raft(Body::TransferLeadership(1)),
            raft(Body::InstallSnapshot { snapshot, membership, round }),
            Packet::Raft(Message { from_id: 3, term: 1, body: Body::TimeoutNow }),
            Packet::Post(post(MAX_MESSAGE + 1)),
            Packet::Post(stranger),
        ];
        for packet in packets {
            let frame = frames(3).encode(&packet).unwrap();
            assert_eq!(kind(frames(3), &frame), ErrorKind::InvalidData, "{packet:?}");
        }
    }

    #[test]
    fn other_versions_and_companies_and_too_much_are_refused() {
        let frame = frames(3).encode(&Packet::Ping).unwrap();
        assert_eq!(kind(frames(2), &frame), ErrorKind::InvalidData);
        for (at, byte) in [(3, VERSION + 1), (11, 0xff)] {
            let mut frame = frame.clone();
            frame[at] = byte;
            assert_eq!(kind(frames(3), &frame), ErrorKind::InvalidData);
        }
    }
}
