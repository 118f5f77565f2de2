// SPDX-License-Identifier: Apache-2.0
//! Where a connection was going to before the kernel's packet filter redirected it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with};

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

/// Say whether an address is one of this network namespace: the kernel routes to it from itself, or, in all of
/// 127.0.0.0/8, from 127.0.0.1.
pub(crate) fn is_own(ip: IpAddr) -> bool {
    let routed = || {
        let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
        connect(&socket, &SocketAddr::new(ip, ANY_PORT)).ok()?;
        SocketAddr::try_from(getsockname(&socket).ok()?).ok()
    };
    ip.is_loopback() || routed().is_some_and(|from| from.ip() == ip)
}

/// An IPv4-mapped IPv6 address names the same end as the IPv4 address in it; scope and flow belong to no policy.
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
