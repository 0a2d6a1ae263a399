//! Strangers on a member's port do no harm.

mod common;

use common::*;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

fn stranger(address: SocketAddr, says: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // The other side may hang up before it has heard all.
    let _ = stream.write_all(says);
    stream
}

/// Waits until the member hangs up.
fn is_refused(mut stream: TcpStream) {
    match stream.read(&mut [0]) {
        Ok(bytes) => assert_eq!(bytes, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn garbage_and_frames_that_are_too_long_or_halves_are_refused_without_harm() {
    let company = Company::new(3);
    let members = company.join_all();
    let leader = leader(&members);
    let mut said = 0;
    let mut all_agree = || {
        members.iter().for_each(|member| say(member, said..said + 10));
        said += 10;
        let heard: Vec<_> = members.iter().map(|it| hear(it, |heard| heard.len() == 30)).collect();
        assert!(heard.iter().all(|it| *it == heard[0]));
    };
    all_agree();
    let garbage: Vec<u8> = (0..100_000_u32).map(|it| (it * 7 % 251) as u8).collect();
    let long = [b"DIN\x01", &[0; 4][..], &[0xff; 8]].concat();
    for address in [company.addresses[0], members[leader].address()] {
        is_refused(stranger(address, &garbage));
        is_refused(stranger(address, b"GET / HTTP/1.1\r\nHost: dinner\r\n\r\n"));
        is_refused(stranger(address, &long));
        let half = stranger(address, &long[..9]);
        let silent = stranger(address, b"");
        all_agree();
        drop(half);
        drop(silent);
    }
    all_agree();
}

#[test]
fn a_crowd_of_strangers_who_say_nothing_does_not_displace_the_members() {
    let company = Company::new(3);
    let members = company.join_all();
    leader(&members);
    let crowd: Vec<_> = (0..140).map(|_| stranger(members[0].address(), b"D")).collect();
    members.iter().for_each(|member| say(member, 0..10));
    members.iter().for_each(|it| _ = by_member(&hear(it, |heard| heard.len() == 30)));
    // More than are served are sent away at once.
    crowd.into_iter().rev().take(5).for_each(is_refused);
}

#[test]
fn members_who_were_told_of_other_companies_do_not_listen_to_each_other() {
    let company = Company::new(3);
    let members: Vec<_> = [0, 1].map(|member| company.join(member)).into();
    let mistaken = Company::new(1);
    let addresses = [&company.addresses[..], &mistaken.addresses[..]].concat();
    let directory = tempfile::tempdir().unwrap();
    let own = company.addresses[2];
    let stranger = dinner::Broadcast::join(&addresses, own, directory.path()).unwrap();
    stranger.broadcast(b"let me in".to_vec()).unwrap();
    members.iter().for_each(|member| say(member, 0..100));
    for member in &members {
        assert!(by_member(&hear(member, |heard| heard.len() == 200)).into_values().eq([100; 2]));
    }
    assert_eq!(stranger.leader(), None);
    assert!(stranger.deliveries().is_empty());
}
