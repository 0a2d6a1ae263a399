//! What a member has broadcast, until it is delivered: posts are sent to whoever leads, and again.

use crate::order::{Origin, Post};
use little_raft::ReplicaID;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Messages that may wait to be delivered.
const LIMIT: usize = 4096;
/// Posts that may be underway at once. Fewer than the queue to a peer holds, so that a burst does
/// not drop its own end.
const WINDOW: usize = 256;
/// How long nothing may be delivered before everything that is underway is sent again. Long against
/// a round trip with two syncs of a disk: copies go into the log.
const RESEND: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Outbox(Mutex<Posts>);

#[derive(Default)]
struct Posts {
    waiting: VecDeque<Post>,
    next_sequence: u64,
    /// How many of those that wait, from the first, are underway, and to which leader.
    underway: usize,
    leader: Option<ReplicaID>,
    /// When something was last sent or delivered.
    moved_at: Option<Instant>,
}

impl Outbox {
    fn posts(&self) -> MutexGuard<'_, Posts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a message, or refuses it with `WouldBlock` if too many wait.
    pub(crate) fn put(&self, origin: Origin, message: Vec<u8>) -> Result<()> {
        let mut posts = self.posts();
        if posts.waiting.len() >= LIMIT {
            let text = format!("{LIMIT} messages wait to be delivered; try again when some are");
            return Err(Error::new(ErrorKind::WouldBlock, text));
        }
        let sequence = posts.next_sequence;
        posts.next_sequence += 1;
        posts.waiting.push_back(Post { origin, sequence, message: Arc::new(message.into()) });
        Ok(())
    }

    /// What is to be sent to this leader now. A new leader may know nothing of what the former one
    /// was sent, so everything goes to it.
    pub(crate) fn due(&self, leader: ReplicaID, now: Instant) -> Vec<Post> {
        let posts = &mut *self.posts();
        let is_stuck = posts.moved_at.is_some_and(|at| now.duration_since(at) >= RESEND);
        if posts.leader.replace(leader) != Some(leader) || is_stuck {
            posts.underway = 0;
        }
        let window = posts.waiting.len().min(WINDOW);
        let due: Vec<_> =
            posts.waiting.range(posts.underway.min(window)..window).cloned().collect();
        if !due.is_empty() {
            (posts.underway, posts.moved_at) = (window, Some(now));
        }
        due
    }

    /// Forgets a post that is delivered. It is the first, since they are delivered in order.
    pub(crate) fn delivered(&self, sequence: u64) {
        let posts = &mut *self.posts();
        if posts.waiting.pop_front_if(|post| post.sequence == sequence).is_some() {
            posts.underway = posts.underway.saturating_sub(1);
            posts.moved_at = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(posts: &[Post]) -> Vec<u64> {
        posts.iter().map(|post| post.sequence).collect()
    }

    fn outbox(messages: usize) -> Outbox {
        let outbox = Outbox::default();
        for _ in 0..messages {
            outbox.put(Origin { member: 0, life: 0 }, Vec::new()).unwrap();
        }
        outbox
    }

    #[test]
    fn a_post_is_sent_once_to_each_leader_and_again_only_if_nothing_moves() {
        let (outbox, now) = (outbox(2), Instant::now());
        assert_eq!(sequences(&outbox.due(1, now)), [0, 1]);
        assert_eq!(sequences(&outbox.due(1, now + RESEND / 2)), []);
        assert_eq!(sequences(&outbox.due(2, now + RESEND / 2)), [0, 1]);
        assert_eq!(sequences(&outbox.due(2, now + RESEND)), []);
        assert_eq!(sequences(&outbox.due(2, now + RESEND * 3 / 2)), [0, 1]);
        outbox.delivered(0);
        assert_eq!(sequences(&outbox.due(3, now + RESEND)), [1]);
        outbox.delivered(1);
        assert_eq!(sequences(&outbox.due(4, now + 9 * RESEND)), []);
    }

    #[test]
    fn only_a_window_is_underway_and_only_so_much_waits() {
        let (outbox, now) = (outbox(LIMIT), Instant::now());
        let error = outbox.put(Origin { member: 0, life: 0 }, Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert_eq!(outbox.due(1, now).len(), WINDOW);
        assert_eq!(sequences(&outbox.due(1, now)), []);
        outbox.delivered(0);
        assert_eq!(sequences(&outbox.due(1, now)), [WINDOW as u64]);
        outbox.put(Origin { member: 0, life: 0 }, Vec::new()).unwrap();
    }
}
