// SPDX-License-Identifier: Apache-2.0
//! The system calls that no safe interface offers. The only unsafe code of this crate.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `SO_PEERPIDFD` of asm-generic/socket.h, Linux 6.5; the libc crate has no name for it on every target.
const SO_PEERPIDFD: libc::c_int = 77;

/// Who connected a Unix socket. rustix has the same call, but its process ID cannot be zero, and here it can: a caller in
/// another PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

pub(crate) fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let found: libc::ucred = socket_option(socket, libc::SO_PEERCRED)?;
    Ok(Credentials { pid: found.pid.cast_unsigned(), uid: found.uid, gid: found.gid })
}

/// A handle on the very process that connected, even when it has ended and its ID belongs to another by now.
pub(crate) fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let found: RawFd = socket_option(socket, SO_PEERPIDFD)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

/// Read a socket option of a plain C type.
fn socket_option<T: Copy>(socket: impl AsFd, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let mut length = size_of::<T>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for this call, `value` has room for `length` bytes, and both live across the call.
    let answer = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut length) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    if length as usize != size_of::<T>() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the kernel filled all bytes of the value, and the callers ask for C structures of integers.
    Ok(unsafe { value.assume_init() })
}

/// Watch a descriptor for becoming readable, in the present runtime.
pub fn watch_readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor is open as long as its lifetime, which the returned value cannot outlive, and always
    // answers with the same number.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// While this lives, threads that the present thread starts are born with all signals blocked.
pub(crate) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub fn new() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises `all`, pthread_sigmask reads it and initialises `before`; neither can fail with
        // these arguments.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the mask is the one that this thread had before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}
