// SPDX-License-Identifier: Apache-2.0
//! Connections to the app on behalf of one peer's connection; no other peer's request ever goes over them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use firedoor_policy::Protocol;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::body::Body;
use super::{CONNECTION_WINDOW, MAX_HEAD, READ_BUFFER, SEND_BUFFER, STREAM_WINDOW};
use crate::inbound::{APP_UNREACHABLE, connect};
use crate::spec::{Common, Inbound};

/// A connection that a request can be sent on.
#[derive(Debug)]
pub(super) enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

/// The app's connections of one peer connection.
#[derive(Debug, Default)]
pub(super) struct Apps {
    /// Also those that are busy: they are ready again when their response has ended.
    one: Mutex<Vec<http1::SendRequest<Body>>>,
    two: tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
}

impl Apps {
    /// Find a connection that is ready, or make one.
    pub async fn ready(&self, common: &Common, inbound: &Inbound) -> Result<Sender, &'static str> {
        if common.protocol == Protocol::Grpc {
            return self.two(common, inbound).await.map(Sender::Two);
        }
        if let Some(sender) = self.idle() {
            return Ok(Sender::One(sender));
        }
        fresh(common, inbound).await.map(Sender::One)
    }

    /// Send a request. One that the app has closed its connection to before a byte was sent goes to a new connection;
    /// nothing else is tried again.
    pub async fn send(
        &self,
        sender: Sender,
        request: Request<Body>,
        common: &Common,
        inbound: &Inbound,
    ) -> Option<Response<Incoming>> {
        let unsent = match sender {
            Sender::Two(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => return Some(response),
                Err(mut error) => error.take_message()?,
            },
            Sender::One(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => {
                    self.lock().push(sender);
                    return Some(response);
                }
                Err(mut error) => error.take_message()?,
            },
        };
        if common.protocol == Protocol::Grpc {
            return self.two(common, inbound).await.ok()?.send_request(unsent).await.ok();
        }
        let mut sender = fresh(common, inbound).await.ok()?;
        let response = sender.send_request(unsent).await.ok()?;
        self.lock().push(sender);
        Some(response)
    }

    fn idle(&self) -> Option<http1::SendRequest<Body>> {
        let mut all = self.lock();
        all.retain(|sender| !sender.is_closed());
        let at = all.iter().rposition(http1::SendRequest::is_ready)?;
        Some(all.swap_remove(at))
    }

    async fn two(&self, common: &Common, inbound: &Inbound) -> Result<http2::SendRequest<Body>, &'static str> {
        let mut held = self.two.lock().await;
        if let Some(sender) = held.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let app = timeout(common.handshake_timeout, connect(inbound)).await.unwrap_or(Err(APP_UNREACHABLE))?;
        let shaking = two().handshake(TokioIo::new(app)).await;
        let (sender, driver) = shaking.map_err(|_| APP_UNREACHABLE)?;
        // Whoever waits for an answer learns how it ended.
        Handle::current().spawn(async move { _ = driver.await });
        *held = Some(sender.clone());
        Ok(sender)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<http1::SendRequest<Body>>> {
        self.one.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fresh(common: &Common, inbound: &Inbound) -> Result<http1::SendRequest<Body>, &'static str> {
    let app = timeout(common.handshake_timeout, connect(inbound)).await.unwrap_or(Err(APP_UNREACHABLE))?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_BUFFER);
    let (mut sender, driver) = builder.handshake(TokioIo::new(app)).await.map_err(|_| APP_UNREACHABLE)?;
    // Whoever waits for an answer learns how it ended.
    Handle::current().spawn(async move { _ = driver.await });
    sender.ready().await.map_err(|_| APP_UNREACHABLE)?;
    Ok(sender)
}

/// Settings of HTTP/2 as a client.
pub(super) fn two() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_header_list_size(MAX_HEAD).max_send_buf_size(SEND_BUFFER);
    builder
}
