//! Requests to the kernel and its replies, as values and as the bytes behind the generic-netlink header.

use super::attribute::{Attributes, Writer, attributes};
use super::layout::command;
use super::{DecodeError, daemon, destination, service};
use crate::model::{
    Destination, DestinationEntry, DestinationKey, Info, Service, ServiceEntry, ServiceKey, SyncDaemon,
    SyncState, TimeoutChange, Timeouts,
};

/// A command of the family, `IPVS_CMD_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Command(pub u8);

impl Command {
    /// Adds a service; also the kind of a reply about one.
    pub const NEW_SERVICE: Self = Self(1);
    /// Changes a service.
    pub const SET_SERVICE: Self = Self(2);
    /// Deletes a service.
    pub const DEL_SERVICE: Self = Self(3);
    /// Asks for services.
    pub const GET_SERVICE: Self = Self(4);
    /// Adds a destination; also the kind of a reply about one.
    pub const NEW_DEST: Self = Self(5);
    /// Changes a destination.
    pub const SET_DEST: Self = Self(6);
    /// Deletes a destination.
    pub const DEL_DEST: Self = Self(7);
    /// Asks for destinations.
    pub const GET_DEST: Self = Self(8);
    /// Starts a sync daemon; also the kind of a reply about one.
    pub const NEW_DAEMON: Self = Self(9);
    /// Stops a sync daemon.
    pub const DEL_DAEMON: Self = Self(10);
    /// Asks for sync daemons.
    pub const GET_DAEMON: Self = Self(11);
    /// Sets timeouts; also the kind of a reply about them.
    pub const SET_CONFIG: Self = Self(12);
    /// Asks for timeouts.
    pub const GET_CONFIG: Self = Self(13);
    /// The kind of a reply with information.
    pub const SET_INFO: Self = Self(14);
    /// Asks for information.
    pub const GET_INFO: Self = Self(15);
    /// Zeroes counters.
    pub const ZERO: Self = Self(16);
    /// Deletes everything.
    pub const FLUSH: Self = Self(17);
}

/// A request to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Adds a service.
    NewService(Service),
    /// Gives a service other settings.
    SetService(Service),
    /// Deletes a service with its destinations.
    DeleteService(ServiceKey),
    /// Asks for one service.
    GetService(ServiceKey),
    /// Asks for all services.
    DumpServices,
    /// Adds a destination.
    NewDestination(ServiceKey, Destination),
    /// Gives a destination other settings.
    SetDestination(ServiceKey, Destination),
    /// Deletes a destination.
    DeleteDestination(ServiceKey, DestinationKey),
    /// Asks for all destinations of a service. For a service that does not exist the kernel answers with none.
    DumpDestinations(ServiceKey),
    /// Starts a sync daemon.
    NewDaemon(SyncDaemon),
    /// Stops a sync daemon.
    DeleteDaemon(SyncState),
    /// Asks for the sync daemons.
    DumpDaemons,
    /// Sets timeouts.
    SetConfig(TimeoutChange),
    /// Asks for the timeouts.
    GetConfig,
    /// Asks for information.
    GetInfo,
    /// Zeroes the counters of one service, or all.
    Zero(Option<ServiceKey>),
    /// Deletes everything.
    Flush,
}

impl Request {
    /// Its command.
    #[must_use]
    pub const fn command(&self) -> Command {
        match self {
            Self::NewService(_) => Command::NEW_SERVICE,
            Self::SetService(_) => Command::SET_SERVICE,
            Self::DeleteService(_) => Command::DEL_SERVICE,
            Self::GetService(_) | Self::DumpServices => Command::GET_SERVICE,
            Self::NewDestination(..) => Command::NEW_DEST,
            Self::SetDestination(..) => Command::SET_DEST,
            Self::DeleteDestination(..) => Command::DEL_DEST,
            Self::DumpDestinations(_) => Command::GET_DEST,
            Self::NewDaemon(_) => Command::NEW_DAEMON,
            Self::DeleteDaemon(_) => Command::DEL_DAEMON,
            Self::DumpDaemons => Command::GET_DAEMON,
            Self::SetConfig(_) => Command::SET_CONFIG,
            Self::GetConfig => Command::GET_CONFIG,
            Self::GetInfo => Command::GET_INFO,
            Self::Zero(_) => Command::ZERO,
            Self::Flush => Command::FLUSH,
        }
    }

    /// Returns whether it is to be sent with `NLM_F_DUMP`.
    #[must_use]
    pub const fn is_dump(&self) -> bool {
        matches!(self, Self::DumpServices | Self::DumpDestinations(_) | Self::DumpDaemons)
    }

    /// Returns whether it changes nothing.
    #[must_use]
    pub const fn is_query(&self) -> bool {
        self.is_dump() || matches!(self, Self::GetService(_) | Self::GetConfig | Self::GetInfo)
    }

    /// Appends the attributes, in the order in which `ipvsadm` sends them. Of a service that only has to be found, its
    /// key is sent.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let mut writer = Writer::of_request(buffer);
        let key = |writer: &mut Writer<'_>, key: &ServiceKey| {
            writer.nest(command::SERVICE, |writer| service::put_key(writer, key));
        };
        match self {
            Self::NewService(value) | Self::SetService(value) => {
                writer.nest(command::SERVICE, |writer| service::put_service(writer, value));
            }
            Self::DeleteService(value)
            | Self::GetService(value)
            | Self::DumpDestinations(value)
            | Self::Zero(Some(value)) => key(&mut writer, value),
            Self::NewDestination(owner, value) | Self::SetDestination(owner, value) => {
                key(&mut writer, owner);
                writer.nest(command::DESTINATION, |writer| destination::put_destination(writer, value));
            }
            Self::DeleteDestination(owner, value) => {
                key(&mut writer, owner);
                writer.nest(command::DESTINATION, |writer| destination::put_key(writer, value));
            }
            Self::NewDaemon(value) => {
                writer.nest(command::DAEMON, |writer| daemon::put_daemon(writer, value));
            }
            Self::DeleteDaemon(state) => {
                writer.nest(command::DAEMON, |writer| daemon::put_state(writer, *state));
            }
            Self::SetConfig(change) => daemon::put_timeouts(&mut writer, change),
            Self::DumpServices
            | Self::DumpDaemons
            | Self::GetConfig
            | Self::GetInfo
            | Self::Zero(None)
            | Self::Flush => {}
        }
    }

    /// Reads the attributes of a request, ours or another program's. Attributes that do not belong to the request,
    /// like the scheduler that `ipvsadm` sends with a destination, are left out.
    ///
    /// # Errors
    /// [`DecodeError`] if they are broken, incomplete, or the command is none of a request.
    pub fn decode(kind: Command, body: &[u8]) -> Result<Self, DecodeError> {
        let (mut owner, mut target, mut sync) = (None, None, None);
        for attribute in attributes(body) {
            let attribute = attribute?;
            match attribute.number() {
                command::SERVICE => owner = Some(attribute.value),
                command::DESTINATION => target = Some(attribute.value),
                command::DAEMON => sync = Some(attribute.value),
                _ => {}
            }
        }
        let need = |list: Option<_>, what| list.ok_or(DecodeError::Missing { what });
        let service = || need(owner, "service");
        let key = || service::decode_key(service()?);
        let whole = || service::decode_service(service()?);
        let destination = || need(target, "destination");
        let daemon = || need(sync, "daemon");
        match kind {
            Command::NEW_SERVICE => whole().map(Self::NewService),
            Command::SET_SERVICE => whole().map(Self::SetService),
            Command::DEL_SERVICE => key().map(Self::DeleteService),
            Command::GET_SERVICE if owner.is_none() => Ok(Self::DumpServices),
            Command::GET_SERVICE => key().map(Self::GetService),
            Command::NEW_DEST => {
                Ok(Self::NewDestination(key()?, destination::decode_destination(destination()?)?))
            }
            Command::SET_DEST => {
                Ok(Self::SetDestination(key()?, destination::decode_destination(destination()?)?))
            }
            Command::DEL_DEST => {
                Ok(Self::DeleteDestination(key()?, destination::decode_key(destination()?)?))
            }
            Command::GET_DEST => key().map(Self::DumpDestinations),
            Command::NEW_DAEMON => daemon::decode_daemon(daemon()?).map(Self::NewDaemon),
            Command::DEL_DAEMON => daemon::decode_state(daemon()?).map(Self::DeleteDaemon),
            Command::GET_DAEMON => Ok(Self::DumpDaemons),
            Command::SET_CONFIG => Ok(Self::SetConfig(daemon::decode_timeouts(body)?.0)),
            Command::GET_CONFIG => Ok(Self::GetConfig),
            Command::GET_INFO => Ok(Self::GetInfo),
            Command::ZERO => owner.map(service::decode_key).transpose().map(Self::Zero),
            Command::FLUSH => Ok(Self::Flush),
            other => Err(DecodeError::UnexpectedCommand { command: other.0 }),
        }
    }
}

/// A message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// Its content.
    pub content: ReplyContent,
    /// Attributes beside it that this crate does not know.
    pub other: Attributes,
}

/// Content of a message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyContent {
    /// A service.
    Service(ServiceEntry),
    /// A destination of the service that was asked about.
    Destination(DestinationEntry),
    /// A sync daemon.
    Daemon(SyncDaemon),
    /// The timeouts.
    Config(Timeouts),
    /// Information.
    Info(Info),
}

impl From<ReplyContent> for Reply {
    fn from(content: ReplyContent) -> Self {
        Self { content, other: Attributes::new() }
    }
}

impl Reply {
    /// Its command.
    #[must_use]
    pub const fn command(&self) -> Command {
        match self.content {
            ReplyContent::Service(_) => Command::NEW_SERVICE,
            ReplyContent::Destination(_) => Command::NEW_DEST,
            ReplyContent::Daemon(_) => Command::NEW_DAEMON,
            ReplyContent::Config(_) => Command::SET_CONFIG,
            ReplyContent::Info(_) => Command::SET_INFO,
        }
    }

    /// Appends the attributes, in the order in which the kernel sends them.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let mut writer = Writer::of_reply(buffer);
        match &self.content {
            ReplyContent::Service(entry) => {
                writer.nest(command::SERVICE, |writer| service::put_entry(writer, entry));
            }
            ReplyContent::Destination(entry) => {
                writer.nest(command::DESTINATION, |writer| destination::put_entry(writer, entry));
            }
            ReplyContent::Daemon(entry) => {
                writer.nest(command::DAEMON, |writer| daemon::put_daemon(writer, entry));
            }
            ReplyContent::Config(timeouts) => daemon::put_timeouts(&mut writer, &(*timeouts).into()),
            ReplyContent::Info(info) => daemon::put_info(&mut writer, info),
        }
        writer.others(&self.other);
    }

    /// Reads the attributes of a reply.
    ///
    /// # Errors
    /// [`DecodeError`] if they are broken, incomplete, or the command is none of a reply.
    pub fn decode(kind: Command, body: &[u8]) -> Result<Self, DecodeError> {
        let (content, other) = match kind {
            Command::NEW_SERVICE => {
                let (list, other) = only(body, command::SERVICE, "service")?;
                (ReplyContent::Service(service::decode_entry(list)?), other)
            }
            Command::NEW_DEST => {
                let (list, other) = only(body, command::DESTINATION, "destination")?;
                (ReplyContent::Destination(destination::decode_entry(list)?), other)
            }
            Command::NEW_DAEMON => {
                let (list, other) = only(body, command::DAEMON, "daemon")?;
                (ReplyContent::Daemon(daemon::decode_daemon(list)?), other)
            }
            Command::SET_CONFIG => {
                let (change, other) = daemon::decode_timeouts(body)?;
                (ReplyContent::Config(daemon::timeouts(change)), other)
            }
            Command::SET_INFO => {
                let (info, other) = daemon::decode_info(body)?;
                (ReplyContent::Info(info), other)
            }
            other => return Err(DecodeError::UnexpectedCommand { command: other.0 }),
        };
        Ok(Self { content, other })
    }
}

/// The one attribute that a reply is about, and the rest.
fn only<'a>(body: &'a [u8], number: u16, what: &'static str) -> Result<(&'a [u8], Attributes), DecodeError> {
    let (mut found, mut other) = (None, Attributes::new());
    for attribute in attributes(body) {
        let attribute = attribute?;
        if attribute.number() == number {
            found = Some(attribute.value);
        } else {
            other.push(attribute.kind, attribute.value)?;
        }
    }
    Ok((found.ok_or(DecodeError::Missing { what })?, other))
}
