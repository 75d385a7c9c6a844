"""Why a policy holds what it holds, and what came of it."""
