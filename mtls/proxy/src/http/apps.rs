// SPDX-License-Identifier: Apache-2.0
//! Connections to the app on behalf of one peer's connection; no other peer's request ever goes over them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use firedoor_policy::Protocol;
use http::{Request, Response};
use hyper::client::conn::http1;
use hyper::ext::on_informational;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::READ_BUFFER;
use super::body::{Body, Source};
use super::client::{Two, Unsent, never};
use super::interim::Between;
use crate::inbound::{APP_UNREACHABLE, connect};
use crate::spec::{Common, Inbound};

/// A connection that a request can be sent on.
#[derive(Debug)]
pub(super) enum Sender {
    One(http1::SendRequest<Body>),
    Two(Two),
}

/// The app's connections of one peer connection.
#[derive(Debug, Default)]
pub(super) struct Apps {
    /// Also those that are busy: they are ready again when their response has ended.
    one: Mutex<Vec<http1::SendRequest<Body>>>,
    two: tokio::sync::Mutex<Option<Two>>,
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
        between: &Between,
        common: &Common,
        inbound: &Inbound,
    ) -> Option<Response<Source>> {
        let unsent = match sender {
            Sender::Two(sender) => match sender.send(request, between, |_| ()).await {
                Ok(response) => return Some(response),
                Err(Unsent(request)) => *request?,
            },
            Sender::One(mut sender) => match sender.try_send_request(listening(request, between)).await {
                Ok(response) => {
                    self.lock().push(sender);
                    return Some(response.map(Source::One));
                }
                Err(mut error) => error.take_message()?,
            },
        };
        if common.protocol == Protocol::Grpc {
            return self.two(common, inbound).await.ok()?.send(unsent, between, |_| ()).await.ok();
        }
        let mut sender = fresh(common, inbound).await.ok()?;
        let response = sender.send_request(unsent).await.ok()?;
        self.lock().push(sender);
        Some(response.map(Source::One))
    }

    fn idle(&self) -> Option<http1::SendRequest<Body>> {
        let mut all = self.lock();
        all.retain(|sender| !sender.is_closed());
        let at = all.iter().rposition(http1::SendRequest::is_ready)?;
        Some(all.swap_remove(at))
    }

    async fn two(&self, common: &Common, inbound: &Inbound) -> Result<Two, &'static str> {
        let mut held = self.two.lock().await;
        if let Some(sender) = held.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let app = timeout(common.handshake_timeout, connect(inbound)).await.unwrap_or(Err(APP_UNREACHABLE))?;
        let opened = Two::open(app, common.max_head, common.handshake_timeout, never).await.ok_or(APP_UNREACHABLE)?;
        *held = Some(opened.clone());
        Ok(opened)
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

/// Have 1xx responses heard.
fn listening(mut request: Request<Body>, between: &Between) -> Request<Body> {
    let between = between.clone();
    on_informational(&mut request, move |interim| between.heard(interim.status(), interim.headers()));
    request
}
