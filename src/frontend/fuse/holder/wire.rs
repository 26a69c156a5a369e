//! What a daemon and a holder say to each other.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

const VERSION: u8 = 1;

/// What a message means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Daemon: keep the file that comes with this.
    Keep,
    /// Daemon: give me the file. I serve it from now on.
    Take,
    /// Daemon: end.
    End,
    /// Holder: done; with the file after [`Kind::Take`].
    Done,
    /// Holder: I cannot.
    No,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Keep, Self::Take, Self::End, Self::Done, Self::No];

    fn letter(self) -> u8 {
        match self {
            Self::Keep => b'K',
            Self::Take => b'T',
            Self::End => b'E',
            Self::Done => b'd',
            Self::No => b'n',
        }
    }
}

/// Sends one message.
pub(super) fn send(to: impl AsFd, kind: Kind, file: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(Errno::NOBUFS);
    }
    let message = [VERSION, kind.letter()];
    sendmsg(to, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Receives one message; `None` at the end. EPROTO for what is none.
pub(super) fn receive(from: impl AsFd) -> Result<Option<(Kind, Option<OwnedFd>)>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = [0; 2];
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(&from, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let file = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    if got.bytes == 0 {
        return Ok(None);
    }
    let [version, letter] = message;
    let kind = Kind::ALL.into_iter().find(|kind| kind.letter() == letter);
    match kind.filter(|_| version == VERSION && got.bytes == message.len()) {
        Some(kind) => Ok(Some((kind, file))),
        None => Err(Errno::PROTO),
    }
}
