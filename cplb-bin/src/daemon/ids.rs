//! The identifier of an instance: its VRID in the configuration, an [`InstanceId`] in the election and a [`GroupId`] in
//! the keeper. The number is the same in all three.

use cplb_config::Instance;
use netlink_vip::GroupId;
use vrrp::runner::InstanceId;

/// The identifier that the election knows a configured instance by.
pub(crate) fn instance_id(instance: &Instance) -> InstanceId {
    InstanceId(instance.vrid.get().into())
}

/// The instance whose addresses the keeper holds as this group.
pub(crate) fn instance_of(group: GroupId) -> InstanceId {
    InstanceId(group.into())
}

/// The keeper's group for the addresses of an instance.
pub(crate) fn group_of(instance: InstanceId) -> GroupId {
    GroupId(instance.into())
}
