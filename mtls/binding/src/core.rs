// SPDX-License-Identifier: Apache-2.0
//! The core: all threads and sockets of one process, behind one handle.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firedoor_front::{
    self as front, Anybody, Backend, ConnectorConfig, ListenError, Shown, Stats, Threads, TlsFront, TlsFrontConfig,
    UnixFront, UnixFrontConfig, UnixPath, Wake, WebFrontConfig, Workload,
};
use firedoor_identity::{Checked, ClientAuth, MaterialStore, SpiffeId};
use firedoor_policy::Engine;
use firedoor_proxy::Proxy;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::control::{ControlClient, ControlServer};
use crate::errors;
use crate::front::{Connector, Front, Kind, WebFront, web_certificate};
use crate::material::Material;
use crate::proxy::{self, DnsRelay, Listener};

/// What every part of a process works with. Fronts, control streams and the data path hold a clone of it.
#[derive(Clone)]
pub(crate) struct Shared {
    pub threads: Arc<Threads>,
    pub store: Arc<MaterialStore>,
    pub stats: Arc<Stats>,
    pub wake: Arc<Wake>,
    /// Of its own: whoever writes records down may be slow, and must hold up nothing else.
    pub record_wake: Arc<Wake>,
    pub proxy: Arc<Proxy>,
    /// What `stop` calls, in the order in which things were opened.
    closers: Arc<Mutex<Vec<Closer>>>,
}

type Closer = Box<dyn Fn() + Send>;

impl Shared {
    /// Refuse to open anything on a core that has stopped, or in a forked child, which has no threads.
    pub fn check_running(&self) -> PyResult<()> {
        match self.threads.are_ours() && !self.threads.stopped() {
            true => Ok(()),
            false => Err(errors::listen(&ListenError::Stopped)),
        }
    }

    /// Have something closed when the core stops.
    pub fn on_stop(&self, closer: impl Fn() + Send + 'static) {
        self.closers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(closer));
    }

    fn stop(&self) {
        if !self.threads.are_ours() {
            // The sockets and their files are the parent's.
            return self.threads.stop();
        }
        let closers = std::mem::take(&mut *self.closers.lock().unwrap_or_else(PoisonError::into_inner));
        closers.iter().for_each(|close| close());
        self.threads.stop();
    }
}

/// All threads and sockets of one process.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Core(pub(crate) Shared);

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (*, data_threads=0, record_capacity=65536))]
    fn new(py: Python<'_>, data_threads: usize, record_capacity: usize) -> PyResult<Self> {
        py.detach(|| {
            let (threads, store) = (Arc::new(Threads::start(data_threads)?), Arc::<MaterialStore>::default());
            let (wake, record_wake) = (Wake::new()?, Wake::new()?);
            let proxy = Arc::new(Proxy::new(store.clone(), &threads, record_capacity, record_wake.source()));
            let (stats, closers) = (Arc::default(), Arc::default());
            let core = Shared { threads, store, stats, wake, record_wake, proxy: proxy.clone(), closers };
            core.on_stop(move || proxy.stop());
            Ok(Self(core))
        })
    }

    /// Check the material, make it the present one and return its revision.
    fn publish(&self, py: Python<'_>, material: &Material) -> PyResult<u64> {
        let parts = material.parts();
        let published = py.detach(|| {
            let revision = self.0.store.publish(parts, check_table)?;
            self.0.proxy.material_changed();
            Ok(revision)
        });
        published.map_err(|refused| errors::material(&refused))
    }

    #[pyo3(signature = (
        *, listen, as_id, backend, control=None, client="optional", anonymous=64, anonymous_seconds=60.0
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn tls_front(
        &self,
        py: Python<'_>,
        listen: String,
        as_id: &str,
        backend: &str,
        control: Option<Py<ControlServer>>,
        client: &str,
        anonymous: usize,
        anonymous_seconds: f64,
    ) -> PyResult<Front> {
        self.0.check_running()?;
        let lifetime = Duration::try_from_secs_f64(anonymous_seconds)
            .map_err(|error| errors::base("bad_argument", format!("anonymous_seconds: {error}")))?;
        let config = TlsFrontConfig {
            listen,
            as_id: spiffe_id(as_id)?,
            backend: self::backend(backend)?,
            control: control.map(|control| control.get().sender()),
            auth: client_auth(client)?,
            anybody: Anybody { most: anonymous, lifetime },
        };
        let core = &self.0;
        let opened = py.detach(|| TlsFront::open(config, core.store.clone(), core.stats.clone(), &core.threads));
        Ok(self.keep(Kind::Tls(opened.map_err(|error| errors::listen(&error))?)))
    }

    #[pyo3(signature = (*, path, backend, mode=0o666, http1_backend=None, workload="process"))]
    fn unix_front(
        &self,
        py: Python<'_>,
        path: PathBuf,
        backend: &str,
        mode: u32,
        http1_backend: Option<&str>,
        workload: &str,
    ) -> PyResult<Front> {
        self.0.check_running()?;
        let config = UnixFrontConfig {
            path: unix_path(path)?,
            mode,
            backend: self::backend(backend)?,
            http1_backend: http1_backend.map(self::backend).transpose()?,
            workload: self::workload(workload)?,
        };
        let core = &self.0;
        let opened = py.detach(|| UnixFront::open(config, core.stats.clone(), &core.threads));
        Ok(self.keep(Kind::Unix(opened.map_err(|error| errors::listen(&error))?)))
    }

    #[pyo3(signature = (*, listen, backend, as_id=None, certificate=None, most=256))]
    fn web_front(
        &self,
        py: Python<'_>,
        listen: String,
        backend: &str,
        as_id: Option<&str>,
        certificate: Option<(Vec<Vec<u8>>, Vec<u8>)>,
        most: usize,
    ) -> PyResult<WebFront> {
        self.0.check_running()?;
        let shown = match (as_id, certificate) {
            (Some(id), None) => Shown::Svid(spiffe_id(id)?),
            (None, Some((chain, key))) => Shown::Certificate(web_certificate(chain, key)?),
            _ => return Err(errors::base("bad_argument", "either as_id or certificate is given".to_owned())),
        };
        let config = WebFrontConfig { listen, backend: self::backend(backend)?, shown, most };
        let core = &self.0;
        let opened = py.detach(|| front::WebFront::open(config, core.store.clone(), core.stats.clone(), &core.threads));
        let opened = Arc::new(opened.map_err(|error| errors::listen(&error))?);
        let closing = opened.clone();
        core.on_stop(move || closing.stop());
        Ok(WebFront(opened))
    }

    #[pyo3(signature = (*, path, addresses, expect, as_id=None, alpn="h2"))]
    fn connector(
        &self,
        py: Python<'_>,
        path: PathBuf,
        addresses: Vec<String>,
        expect: &str,
        as_id: Option<&str>,
        alpn: &str,
    ) -> PyResult<Connector> {
        self.0.check_running()?;
        let config = ConnectorConfig {
            path: unix_path(path)?,
            addresses,
            expect: spiffe_id(expect)?,
            as_id: as_id.map(spiffe_id).transpose()?,
            alpn: alpn.into(),
        };
        let core = &self.0;
        let opened =
            py.detach(|| front::Connector::open(config, core.store.clone(), core.stats.clone(), &core.threads));
        let connector = Arc::new(opened.map_err(|error| errors::listen(&error))?);
        let closing = connector.clone();
        core.on_stop(move || closing.stop());
        Ok(Connector(connector))
    }

    fn control_server(&self) -> PyResult<ControlServer> {
        self.0.check_running()?;
        Ok(ControlServer::open(&self.0))
    }

    #[pyo3(signature = (*, addresses, as_id, expect))]
    fn control_client(&self, addresses: Vec<String>, as_id: &str, expect: &str) -> PyResult<ControlClient> {
        self.0.check_running()?;
        ControlClient::open(&self.0, addresses, as_id, expect)
    }

    /// Open an inbound or outbound data-path listener from its JSON form.
    fn listen(&self, py: Python<'_>, spec: &str) -> PyResult<Listener> {
        self.0.check_running()?;
        let opened = py.detach(|| self.0.proxy.listen(spec));
        opened.map(Listener).map_err(|error| errors::listener(&error))
    }

    /// Open the DNS relay of a captured network namespace.
    #[pyo3(signature = (*, listen, names=None))]
    fn dns_relay(&self, py: Python<'_>, listen: Vec<String>, names: Option<Vec<String>>) -> PyResult<DnsRelay> {
        self.0.check_running()?;
        let listen = proxy::addresses(&listen)?;
        let opened = py.detach(|| self.0.proxy.dns_relay(&listen, names.as_deref()));
        let relay = Arc::new(opened.map_err(|error| errors::listener(&error))?);
        let closing = relay.clone();
        self.0.on_stop(move || closing.stop());
        Ok(DnsRelay(relay))
    }

    /// Return the state of all data-path listeners as a JSON array.
    fn listeners(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.proxy.listeners())
    }

    /// Return up to `limit` decision records as JSON lines.
    fn drain_records<'py>(&self, py: Python<'py>, limit: usize) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.0.proxy.drain_records(limit)))
    }

    /// Return the live registry as a JSON array.
    fn connections(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.proxy.connections())
    }

    /// Stop accepting, wait so long for connections to end; say whether all did.
    fn drain(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let patience = Duration::try_from_secs_f64(seconds)
            .map_err(|_| errors::base("bad_argument", "seconds is a positive number".to_owned()))?;
        Ok(py.detach(|| self.0.proxy.drain(patience)))
    }

    /// Return an eventfd that is readable while control events wait. Owned by the core.
    fn event_fd(&self) -> i32 {
        self.0.wake.raw_fd()
    }

    /// Return an eventfd that is readable while decision records wait. Owned by the core.
    fn record_fd(&self) -> i32 {
        self.0.record_wake.raw_fd()
    }

    fn stats(&self) -> BTreeMap<String, u64> {
        let mut all = self.0.proxy.stats();
        all.extend(self.0.stats.read().into_iter().map(|(name, value)| (name.to_owned(), value)));
        all
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}

impl Core {
    fn keep(&self, kind: Kind) -> Front {
        let kind = Arc::new(kind);
        let closing = kind.clone();
        self.0.on_stop(move || closing.stop());
        Front(kind)
    }
}

pub(crate) fn check_table(bytes: &[u8]) -> Result<Checked, String> {
    let engine = Arc::new(Engine::load(bytes).map_err(|error| error.to_string())?);
    let asked = engine.clone();
    let segment_of = Arc::new(move |id: &SpiffeId| asked.segment_of(id).map(|segment| segment.name.to_string()));
    Ok(Checked { table: engine, segment_of })
}

pub(crate) fn spiffe_id(text: &str) -> PyResult<SpiffeId> {
    SpiffeId::parse(text).map_err(|error| errors::verify(&error))
}

fn unix_path(path: PathBuf) -> PyResult<UnixPath> {
    UnixPath::parse(path).map_err(|error| errors::listen(&error))
}

fn backend(address: &str) -> PyResult<Backend> {
    Backend::parse(address).map_err(|error| errors::listen(&error))
}

/// Return a new abstract address for a private server and the front before it, as grpcio writes it.
#[pyfunction]
pub fn private_address() -> String {
    Backend::random()
}

fn client_auth(word: &str) -> PyResult<ClientAuth> {
    match word {
        "optional" => Ok(ClientAuth::Optional),
        "required" => Ok(ClientAuth::Required),
        _ => Err(errors::base("bad_argument", "client is \"optional\" or \"required\"".to_owned())),
    }
}

fn workload(word: &str) -> PyResult<Workload> {
    match word {
        "process" => Ok(Workload::Process),
        "pod" => Ok(Workload::Pod),
        _ => Err(errors::base("bad_argument", "workload is \"process\" or \"pod\"".to_owned())),
    }
}
