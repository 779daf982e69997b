//! The default system-call filter.
//!
//! It denies what Docker's default profile denies: what changes the machine, what reaches the
//! kernel's least-tested corners, and what makes namespaces. A list of denials, not of permissions:
//! a new kernel's harmless calls go on working, and the dangerous ones have all been behind
//! capabilities that a container does not have.
//!
//! The first instructions are written by hand because rules compare for equality only: calls of the
//! x32 interface (bit 30 set) would slip past every rule, and `clone3` passes its flags in memory
//! where no filter can look, so it "does not exist" and the C library falls back to `clone`.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

/// Denied unless the container was given CAP_SYS_ADMIN, which is pointless without them.
const DENIED_WITHOUT_ADMIN: &[i64] = &[
    libc::SYS_bpf,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_umount2,
    libc::SYS_unshare,
];

const DENIED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_keyctl,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

const NAMESPACE_FLAGS: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWCGROUP,
];

/// Not in the libc crate: virtual-machine sockets, which reach the hypervisor past every firewall.
const AF_VSOCK: u64 = 40;
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// The filter for a container; `admin` when it was deliberately given CAP_SYS_ADMIN.
pub fn default_filter(admin: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in DENIED.iter().chain(DENIED_HERE) {
        rules.insert(*call, Vec::new());
    }
    if !admin {
        for call in DENIED_WITHOUT_ADMIN {
            rules.insert(*call, Vec::new());
        }
        let flags = NAMESPACE_FLAGS.iter().map(|flag| {
            let flag = *flag as u64;
            rule(0, SeccompCmpOp::MaskedEq(flag), flag)
        });
        rules.insert(libc::SYS_clone, flags.collect::<Result<_, _>>()?);
    }
    rules.insert(libc::SYS_socket, vec![rule(0, SeccompCmpOp::Eq, AF_VSOCK)?]);
    // Typing into the terminal that started us is not a thing a container does.
    rules.insert(
        libc::SYS_ioctl,
        vec![
            rule(1, SeccompCmpOp::MaskedEq(0xffff_ffff), TIOCSTI)?,
            rule(1, SeccompCmpOp::MaskedEq(0xffff_ffff), TIOCLINUX)?,
        ],
    );
    // Only the plain Linux personality: 0, and 0xffffffff which asks.
    rules.insert(
        libc::SYS_personality,
        vec![SeccompRule::new(vec![
            condition(0, SeccompCmpOp::Ne, 0)?,
            condition(0, SeccompCmpOp::Ne, 0x0008)?,
            condition(0, SeccompCmpOp::Ne, 0x0002_0000)?,
            condition(0, SeccompCmpOp::Ne, 0x0002_0008)?,
            condition(0, SeccompCmpOp::Ne, 0xffff_ffff)?,
        ])?],
    );
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    let mut program = prelude();
    program.extend(BpfProgram::try_from(filter)?);
    Ok(program)
}

fn condition(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
}

fn rule(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(index, operator, value)?])
}

fn prelude() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const RETURN_ERRNO: u32 = 0x0005_0000;
    const X32_BIT: u32 = 0x4000_0000;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_GREATER_OR_EQUAL, 1, 0, X32_BIT),
        instruction(JUMP_EQUAL, 0, 1, libc::SYS_clone3 as u32),
        instruction(RETURN, 0, 0, RETURN_ERRNO | libc::ENOSYS as u32),
    ]
}
