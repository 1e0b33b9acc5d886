//! Brings back sessions that iscsid cannot bring back by itself.
//!
//! When a connection that is being made anew breaks between iscsid's binding it to its session and its log-in, the kernel
//! (since 5.14) cleans up and lets nobody use the connection before it is told to stop it. iscsid does not tell it so at that
//! stage, and tries to bind the next connection, in vain, for ever (open-iscsi issue 387). A tgtd that has just been started
//! and has no target yet does it easily: it accepts, and closes at once. The guest's I/O then hangs until the replacement
//! time-out, and fails after it, although the target has long been back.
//!
//! So what iscsid leaves out is done here, by the kernel's own messages (`include/scsi/iscsi_if.h`, netlink protocol 8): stop
//! the connection for recovery. iscsid's next try succeeds, and the guest keeps its disk.
//!
//! Stopped at any other time, a connection is dead and iscsid does not know. So the kernel is asked first whether it lets
//! nobody use the connection, by a PDU to send that is malformed and refused for that, unless the connection is refused
//! before. A connection that was found so twice, seconds apart, is one that iscsid does not stop itself; nothing but the
//! stop, or a new iscsid, changes it.

use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use tokio::sync::Mutex;
use tokio::time::sleep;
use tracing::warn;

use super::Kept;
use super::sysfs::{Sysfs, blocking};

/// Between two looks: longer than iscsid takes to stop a connection by itself.
const LOOK: Duration = Duration::from_secs(3);

/// The longest that the kernel may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Kinds of messages.
const STOP: u16 = 18;
const SEND_PDU: u16 = 19;
/// An answer that says why a message was refused.
const REFUSED: u32 = 103;
/// To stop a connection so that its session can have another.
const FOR_RECOVERY: u32 = 3;

/// Bytes of the header of a netlink message and of the whole, with `struct iscsi_uevent`; where in the latter the result is.
const HEADER: usize = 16;
const MESSAGE: u32 = 72;
const RESULT: usize = 40;

/// Looks after the sessions that were logged in to here and have not been logged out.
pub(super) async fn for_ever(sysfs: Sysfs, known: Arc<Mutex<Kept>>) {
    let mut stuck = BTreeSet::new();
    loop {
        sleep(LOOK).await;
        stuck = look(&sysfs, &known, stuck).await.unwrap_or_else(|error| {
            warn!(error, "whether a session is stuck cannot be seen");
            BTreeSet::new()
        });
    }
}

/// Stops the connections of those sessions that were stuck before and still are, and returns which others are.
async fn look(sysfs: &Sysfs, known: &Mutex<Kept>, before: BTreeSet<u32>) -> std::result::Result<BTreeSet<u32>, String> {
    let mut down = sysfs.sessions().await.map_err(|e| e.message)?;
    down.retain(|session| !session.logged_in);
    if down.is_empty() {
        return Ok(BTreeSet::new());
    }
    let known = known.lock().await.0.keys().cloned().collect::<BTreeSet<_>>();
    down.retain(|session| known.contains(&session.iqn));
    let Some(transport) = sysfs.tcp_transport().await.map_err(|e| e.message)? else { return Ok(BTreeSet::new()) };
    let revive = move || {
        let kernel = Kernel::open(transport)?;
        let mut stuck = BTreeSet::new();
        for session in down {
            if !kernel.is_stuck(session.id)? {
                continue;
            }
            if before.contains(&session.id) {
                kernel.stop(session.id)?;
                warn!(
                    iqn = session.iqn,
                    "iscsid could not bring the session back by itself: its connection was stopped"
                );
            } else {
                stuck.insert(session.id);
            }
        }
        Ok(stuck)
    };
    blocking(revive).await.map_err(|e| e.message)?.map_err(|e: Error| e.to_string())
}

/// The kernel's iSCSI, by netlink.
struct Kernel {
    socket: OwnedFd,
    transport: u64,
}

impl Kernel {
    fn open(transport: u64) -> Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::ISCSI))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
        Ok(Self { socket, transport })
    }

    /// Whether the kernel lets nobody use the session's connection.
    fn is_stuck(&self, session: u32) -> Result<bool> {
        // A header longer than the message, and no data.
        match self.ask(SEND_PDU, session, [u32::MAX, 0, 0, 0])? {
            Answer::Result(result) => Ok(result == -Errno::NOTCONN.raw_os_error()),
            Answer::Refused(_) => Ok(false),
        }
    }

    fn stop(&self, session: u32) -> Result<()> {
        // An unused handle of eight bytes comes before the flag.
        match self.ask(STOP, session, [0, 0, FOR_RECOVERY, 0])? {
            Answer::Result(0) => Ok(()),
            Answer::Result(error) | Answer::Refused(error) => Err(Error::from_raw_os_error(error.saturating_neg())),
        }
    }

    fn ask(&self, kind: u16, session: u32, words: [u32; 4]) -> Result<Answer> {
        let message = message(kind, self.transport, session, words);
        sendto(&self.socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 256];
        let (_, length) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        Answer::read(answer.get(..length).unwrap_or(&answer), kind).ok_or_else(|| Error::other("no answer of its kind"))
    }
}

/// A message about the one connection of a session. What follows the numbers of the two is the kind's own.
fn message(kind: u16, transport: u64, session: u32, words: [u32; 4]) -> Vec<u8> {
    const FLAG_REQUEST: u16 = 1;
    let mut bytes = MESSAGE.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(FLAG_REQUEST.to_ne_bytes());
    // Neither a sequence number nor a sender: the answer to one message is awaited before the next.
    bytes.extend([0; 8]);
    bytes.extend(u32::from(kind).to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(transport.to_ne_bytes());
    for word in [session, 0].into_iter().chain(words) {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.resize(MESSAGE as usize, 0);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It was done, with this result: 0 or a negative error.
    Result(i32),
    /// It was not, for this error.
    Refused(i32),
}

impl Answer {
    fn read(bytes: &[u8], kind: u16) -> Option<Self> {
        let event = bytes.get(HEADER..)?;
        let word = |at: usize| <[u8; 4]>::try_from(event.get(at..at + 4)?).ok();
        let result = i32::from_ne_bytes(word(RESULT)?);
        match u32::from_ne_bytes(word(0)?) {
            REFUSED => Some(Self::Refused(i32::from_ne_bytes(word(4)?))),
            answered if answered == u32::from(kind) => Some(Self::Result(result)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_long_as_the_kernels_structure_and_names_the_session() {
        let message = message(STOP, 0x0807_0605_0403_0201, 7, [0, 0, FOR_RECOVERY, 0]);
        assert_eq!(message.len(), 72);
        let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(32), word(36), word(48)), (72, 18, 7, 0, 3));
        assert_eq!(message[24..32], 0x0807_0605_0403_0201_u64.to_ne_bytes());
    }

    #[test]
    fn a_result_is_told_from_a_refusal_and_nonsense_is_neither() {
        // As Linux 6.1 answers: for a connection that nobody may use, and for any other.
        let answer = |kind: u32, error: i32, result: i32| {
            let mut bytes = vec![0; 72];
            bytes[16..20].copy_from_slice(&kind.to_ne_bytes());
            bytes[20..24].copy_from_slice(&error.to_ne_bytes());
            bytes[56..60].copy_from_slice(&result.to_ne_bytes());
            bytes
        };
        assert_eq!(Answer::read(&answer(19, 0, -107), SEND_PDU), Some(Answer::Result(-107)));
        assert_eq!(Answer::read(&answer(103, -22, 0), SEND_PDU), Some(Answer::Refused(-22)));
        assert_eq!(Answer::read(&answer(18, 0, 0), SEND_PDU), None);
        for end in 0..60 {
            assert_eq!(Answer::read(&answer(19, 0, 0)[..end], SEND_PDU), None);
        }
    }
}
