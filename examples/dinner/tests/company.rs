//! Members agree on one order, whoever speaks, and whoever comes and goes.

mod common;

use common::*;
use std::io::ErrorKind;
use std::thread;

#[test]
fn what_all_say_at_once_is_heard_by_all_in_one_order() {
    let company = Company::new(3);
    let members = company.join_all();
    thread::scope(|scope| {
        members.iter().for_each(|member| _ = scope.spawn(|| say(member, 0..500)));
    });
    let heard: Vec<_> = members.iter().map(|it| hear(it, |heard| heard.len() == 1500)).collect();
    assert!(heard.iter().all(|it| *it == heard[0]));
    assert!(by_member(&heard[0]).into_values().eq([500; 3]));
    members.into_iter().for_each(|member| member.leave().unwrap());
}

#[test]
fn a_member_that_comes_back_hears_everything_once() {
    let company = Company::new(3);
    let mut members = company.join_all();
    say(&members[0], 0..100);
    let before = hear(&members[2], |heard| heard.len() == 100);
    members.pop().unwrap().leave().unwrap();
    say(&members[0], 100..200);
    hear(&members[1], |heard| heard.len() == 200);
    members.push(company.join(2));
    say(&members[0], 200..300);
    let heard = hear(&members[2], |heard| heard.len() == 300);
    assert_eq!(by_member(&heard)[&company.addresses[0]], 300);
    assert_eq!(heard[..100], before);
    assert_eq!(hear(&members[0], |it| it.len() == 300), heard);
    assert_eq!(hear(&members[1], |it| it.len() == 100), heard[200..]);
    // It can speak again, too.
    say(&members[2], 0..1);
    members.iter().for_each(|member| assert_eq!(hear(member, |it| it.len() == 1)[0].number, 301));
    members.iter().for_each(|member| assert!(member.deliveries().is_empty()));
}

#[test]
fn a_company_that_stops_as_a_whole_goes_on_where_it_was() {
    let company = Company::new(3);
    let members = company.join_all();
    say(&members[1], 0..50);
    let heard = hear(&members[0], |heard| heard.len() == 50);
    drop(members);
    let members = company.join_all();
    // What it says in its new life is not taken for copies of what it said in its first one.
    say(&members[1], 50..100);
    for member in &members {
        let again = hear(member, |heard| heard.len() == 100);
        assert_eq!(again[..50], heard);
        assert_eq!(by_member(&again)[&company.addresses[1]], 100);
    }
}

#[test]
fn a_leader_that_stops_in_the_middle_loses_and_repeats_nothing_of_the_others() {
    let company = Company::new(3);
    let mut members = company.join_all();
    let leader = leader(&members);
    members.iter().for_each(|member| say(member, 0..1000));
    // No more than a window of what they said can be underway when these are heard.
    let mut early = hear(&members[leader], |heard| heard.len() == 50);
    let gone = members.remove(leader);
    let rest = gone.deliveries().clone();
    gone.leave().unwrap();
    early.extend(rest.iter());
    members.iter().for_each(|member| say(member, 1000..1500));
    let (one, other) = (members[0].address(), members[1].address());
    let all = |heard: &[dinner::Delivery]| {
        let count = |from| heard.iter().filter(|it| it.from == from).count();
        (count(one), count(other)) == (1500, 1500)
    };
    let heard: Vec<_> = members.iter().map(|member| hear(member, all)).collect();
    by_member(&heard[0]);
    by_member(&early);
    let (short, long) = (heard[0].len().min(heard[1].len()), early.len());
    assert_eq!(heard[0][..short], heard[1][..short]);
    // What the leader delivered is delivered by all, whatever happened to it afterwards.
    assert_eq!(heard[0][..long], early);
    let back = company.join(leader);
    let again = hear(&back, all);
    assert_eq!(again[..short], heard[0][..short]);
    by_member(&again);
}

#[test]
fn what_cannot_be_broadcast_and_who_cannot_join() {
    let company = Company::new(2);
    let alone = company.join(0);
    let kind = |bytes: usize| alone.broadcast(vec![0; bytes]).unwrap_err().kind();
    assert_eq!(kind(dinner::MAX_MESSAGE + 1), ErrorKind::InvalidInput);
    // Without a majority nothing is delivered, and not everything can wait.
    while alone.broadcast(Vec::new()).is_ok() {}
    assert_eq!(kind(0), ErrorKind::WouldBlock);
    let kind = |addresses: &[_], own: usize| {
        let directory = tempfile::tempdir().unwrap();
        let joined = dinner::Broadcast::join(addresses, company.addresses[own], directory.path());
        joined.err().expect("must be refused").kind()
    };
    assert_eq!(kind(&company.addresses[..1], 1), ErrorKind::InvalidInput);
    assert_eq!(kind(&[company.addresses[1]; 2], 1), ErrorKind::InvalidInput);
    assert_eq!(kind(&company.addresses, 0), ErrorKind::AddrInUse);
}

#[test]
fn the_longest_messages_travel_in_great_numbers() {
    let company = Company::new(3);
    let members = company.join_all();
    for number in 0..600_usize {
        members[number % 3].broadcast(vec![number as u8; dinner::MAX_MESSAGE]).unwrap();
    }
    let heard: Vec<_> = members.iter().map(|it| hear(it, |heard| heard.len() == 600)).collect();
    assert!(heard.iter().all(|it| *it == heard[0]));
    assert!(heard[0].iter().all(|it| it.message().len() == dinner::MAX_MESSAGE));
}
