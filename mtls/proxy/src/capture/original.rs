// SPDX-License-Identifier: Apache-2.0
//! Where a connection was going to before the kernel's packet filter redirected it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with};

/// Where nothing is sent: connecting a UDP socket only asks for the route.
const ANY_PORT: u16 = 9;

/// Where an accepted connection was going to. None when the kernel knows of no redirection, as for who connects to a
/// capture port itself.
pub(crate) fn destination(socket: impl AsFd) -> Option<SocketAddr> {
    let here = canonical(SocketAddr::try_from(getsockname(&socket).ok()?).ok()?);
    // The tuple is looked up by the family of the connection, which on a socket for both is not the socket's own.
    let wanted = match here {
        SocketAddr::V4(_) => SocketAddr::V4(ip_original_dst(&socket).ok()?),
        SocketAddr::V6(_) => SocketAddr::V6(ipv6_original_dst(&socket).ok()?),
    };
    let wanted = canonical(wanted);
    (wanted != here && wanted.port() != 0).then_some(wanted)
}

/// Whether an address is one of this network namespace's.
///
/// A route to an own address starts there, but for a further address of a network, whose route starts at the first: that
/// one can be bound. Where anything can be (`ip_nonlocal_bind`), that proves nothing and does not count.
pub(crate) fn is_own(ip: IpAddr) -> bool {
    let (family, nobodys): (_, IpAddr) = if ip.is_ipv4() {
        (AddressFamily::INET, Ipv4Addr::new(192, 0, 2, 1).into())
    } else {
        (AddressFamily::INET6, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
    };
    let open = || socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok();
    let routed = || {
        let socket = open()?;
        connect(&socket, &SocketAddr::new(ip, ANY_PORT)).ok()?;
        SocketAddr::try_from(getsockname(&socket).ok()?).ok()
    };
    let bound = |ip| open().is_some_and(|socket| bind(&socket, &SocketAddr::new(ip, 0)).is_ok());
    let one = !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST);
    ip.is_loopback() || one && (routed().is_some_and(|from| from.ip() == ip) || bound(ip) && !bound(nobodys))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_that_nobody_redirected_was_going_nowhere_else() {
        for (listen, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
            let listener = TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _client = TcpStream::connect((connect.parse::<IpAddr>().unwrap(), port)).unwrap();
            assert_eq!(destination(listener.accept().unwrap().0), None, "{listen} from {connect}");
        }
    }

    #[test]
    fn what_is_not_a_connection_has_no_destination() {
        assert_eq!(destination(std::os::unix::net::UnixStream::pair().unwrap().0), None);
    }

    #[test]
    fn own_addresses_are_told_from_others() {
        for own in ["127.0.0.1", "127.3.2.1", "::1"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        for other in ["192.0.2.1", "2001:db8::1", "0.0.0.0", "::", "255.255.255.255"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
    }
}
