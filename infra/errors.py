"""What can go wrong while the stack is run, as one tree.

    ShrkError                 anything an operator can act on; `shrk` prints it as one line and exits with `exit_code`
    ├── MachineUnfit          this machine lacks something
    │   ├── PortInUse         a port that must be ours belongs to another process
    │   ├── NoDiskSpace       too little room for the state folder
    │   ├── WrongJava         no Java that can run Kafka
    │   └── JarsUnavailable   Kafka's jars could not be fetched, or are not the ones listed
    ├── AlreadyRunning        another `shrk up` holds the state folder
    ├── NotRunning            nothing runs on the state folder
    ├── ChildFailed           a process of the stack did not come up
    ├── Unreachable           Kafka or PostgreSQL does not answer
    ├── MigrationFailed       the database is not in a state that the migrations can bring forward
    ├── TopicMismatch         a topic exists in another shape than declared
    ├── AccountRefused        a command on wallets, keys, models or providers that cannot be carried out
    ├── RebuildFailed         schema derived could not be made anew; the live one is as it was
    ├── FactRefused           a fact for the ledger log that cannot be appended
    └── EpochNotClosed        there is no such epoch, or it cannot be closed now

Everything else is a bug and keeps its traceback.
"""


class ShrkError(Exception):
    """An operational failure. Its text is one line: what is wrong and, where known, what to do."""

    exit_code = 1


class MachineUnfit(ShrkError):
    """This machine lacks something that the stack needs."""


class PortInUse(MachineUnfit):
    """A port that must be ours belongs to another process."""


class NoDiskSpace(MachineUnfit):
    """Too little room for the state folder."""


class WrongJava(MachineUnfit):
    """No Java that can run Kafka."""


class JarsUnavailable(MachineUnfit):
    """Kafka's jars could not be fetched, or are not the ones listed."""


class AlreadyRunning(ShrkError):
    """Another `shrk up` holds the state folder."""


class NotRunning(ShrkError):
    """Nothing runs on the state folder."""


class ChildFailed(ShrkError):
    """A process of the stack did not come up."""


class Unreachable(ShrkError):
    """Kafka or PostgreSQL does not answer."""


class MigrationFailed(ShrkError):
    """The database is not in a state that the migrations can bring forward."""


class TopicMismatch(ShrkError):
    """A topic exists in another shape than declared."""


class AccountRefused(ShrkError):
    """A command on wallets, keys, models or providers that cannot be carried out."""


class RebuildFailed(ShrkError):
    """Schema derived could not be made anew; the live one is as it was."""


class FactRefused(ShrkError):
    """A fact for the ledger log that cannot be appended."""


class EpochNotClosed(ShrkError):
    """There is no such epoch, or it cannot be closed now."""
